"""`Propagator`: both engines compared with sgp4, and the states that it marks as unusable."""

from __future__ import annotations

import sys
from datetime import timedelta
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgp4.api import WGS72, WGS84, Satrec, SatrecArray

from sda_ops.astro.propagation import LARGE_SELECTION, Engine, PropagationError, Propagator, States, one_thread
from sda_ops.astro.time import NS_PER_DAY, Nanoseconds, julian_date
from sda_ops.catalog import read_catalog, synthetic_catalog
from tests.helpers.sizes import examples
from tests.helpers.support import SDA_DATA_DIR

NOW_NS = 1_790_000_000_000_000_000
NOW_DAYS = NOW_NS / NS_PER_DAY + 2440587.5 - 2433281.5
MARCH_10TH_2026_NS = 1_773_144_000 * 10**9

ONE_MILLIONTH_KILOMETRE = 1e-3
TENTH_OF_A_MILLIMETRE_PER_SECOND = 1e-4

with_heyoka = pytest.mark.skipif(find_spec("heyoka") is None, reason="the extra 'heyoka' is not installed")
both_engines = pytest.mark.parametrize("engine", ["sgp4", pytest.param("heyoka", marks=with_heyoka)])


def elements(
    *,
    perigee_km: float = 600.0,
    apogee_km: float = 650.0,
    inclination_rad: float = 1.0,
    bstar: float = 1e-4,
    epoch_days: float = NOW_DAYS,
    angles_rad: tuple[float, float, float] = (1.0, 2.0, 3.0),
    gravity: int = WGS72,
) -> Satrec:
    a_km = 6378.135 + (perigee_km + apogee_km) / 2
    satrec = Satrec()
    perigee_rad, anomaly_rad, node_rad = angles_rad
    satrec.sgp4init(
        gravity,
        "i",
        1,
        epoch_days,
        bstar,
        0.0,
        0.0,
        (apogee_km - perigee_km) / (2 * a_km),
        perigee_rad,
        inclination_rad,
        anomaly_rad,
        60.0 * np.sqrt(398600.8 / a_km**3),
        node_rad,
    )
    return satrec


def geostationary() -> Satrec:
    return elements(perigee_km=35_780.0, apogee_km=35_790.0, inclination_rad=0.01, bstar=0.0)


def days_later(*days: float) -> Nanoseconds:
    times_ns: Nanoseconds = NOW_NS + np.rint(np.array(days) * NS_PER_DAY).astype(np.int64)
    return times_ns


def states_by_sgp4(satrecs: list[Satrec], time_ns: Nanoseconds) -> States:
    error, r_km, v_km_s = SatrecArray(satrecs).sgp4(*julian_date(time_ns))
    return States(r_km * 1e3, v_km_s * 1e3, error)


def assert_same(ours: States, sgp4s: States) -> None:
    """Compare all states except those marked as implausible, which sgp4 does not mark."""
    sgp4s.error[ours.error == PropagationError.IMPLAUSIBLE] = PropagationError.IMPLAUSIBLE
    np.testing.assert_array_equal(ours.error, sgp4s.error)
    assert np.isfinite(ours.r_teme_m[ours.usable]).all()
    assert np.isnan(ours.r_teme_m[~ours.usable]).all()
    assert np.isnan(ours.v_teme_m_s[~ours.usable]).all()
    np.testing.assert_allclose(
        ours.r_teme_m[ours.usable], sgp4s.r_teme_m[ours.usable], rtol=0, atol=ONE_MILLIONTH_KILOMETRE
    )
    np.testing.assert_allclose(
        ours.v_teme_m_s[ours.usable], sgp4s.v_teme_m_s[ours.usable], rtol=0, atol=TENTH_OF_A_MILLIMETRE_PER_SECOND
    )


@both_engines
def test_the_real_catalogue_is_propagated_like_sgp4(engine: Engine) -> None:
    """14,683 real objects, 30 days before and after, deep space included: equal error codes, positions to 1e-6 km."""
    path = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    satrecs = [element_set.satrec for element_set in read_catalog(path).element_sets]
    propagator = Propagator(satrecs, engine=engine, max_age=None)
    times_ns = MARCH_10TH_2026_NS + np.array([-30, -7, 0, 1, 29]) * NS_PER_DAY
    states = propagator.propagate(times_ns)
    assert propagator.engine == engine
    assert_same(states, states_by_sgp4(satrecs, times_ns))
    assert 0 < np.count_nonzero(states.error == PropagationError.DECAYED) < 2000
    assert 0 < np.count_nonzero(states.error == PropagationError.IMPLAUSIBLE) < 10


@with_heyoka
@given(st.data())
@settings(max_examples=examples(40))
def test_heyoka_agrees_with_sgp4_on_any_orbit(data: st.DataObject) -> None:
    """For any eight orbits, decaying and deep-space ones included, states and error codes are the same."""
    heights = st.floats(100.0, 50_000.0)
    angle = st.floats(0.0, 6.28, allow_subnormal=False)
    satrecs = []
    for _ in range(8):
        perigee_km, apogee_km = sorted((data.draw(heights), data.draw(heights | st.floats(100.0, 2000.0))))
        satrecs.append(
            elements(
                perigee_km=perigee_km,
                apogee_km=apogee_km,
                inclination_rad=data.draw(st.floats(0.0, np.pi, allow_subnormal=False)),
                bstar=data.draw(st.sampled_from([0.0, 1e-4, -1e-4, 1e-2])),
                epoch_days=NOW_DAYS + data.draw(st.floats(0.0, 1.0)),
                angles_rad=(data.draw(angle), data.draw(angle), data.draw(angle)),
            )
        )
    times_ns = days_later(-30.0, -1.0, 0.0, 0.3, 30.0)
    assert_same(
        Propagator(satrecs, engine="heyoka", max_age=None).propagate(times_ns),
        states_by_sgp4(satrecs, times_ns),
    )


@with_heyoka
def test_heyoka_ignores_leap_seconds_like_sgp4() -> None:
    """Across the leap second at the end of 2016 the positions are the same."""
    december_2016_days = (1_482_796_800 * 10**9) / NS_PER_DAY + 2440587.5 - 2433281.5
    satrecs = [elements(epoch_days=december_2016_days)]
    times_ns = np.array([1_483_660_800 * 10**9])
    assert_same(Propagator(satrecs, engine="heyoka").propagate(times_ns), states_by_sgp4(satrecs, times_ns))


@with_heyoka
def test_heyoka_is_not_used_for_element_sets_with_another_gravity_model() -> None:
    """Element sets with WGS-84, which heyoka would treat as WGS-72, have the same states as by sgp4."""
    satrecs = [elements(gravity=WGS84), elements()]
    assert_same(
        Propagator(satrecs, engine="heyoka").propagate(days_later(3.0)), states_by_sgp4(satrecs, days_later(3.0))
    )


@both_engines
def test_a_selection_has_the_same_states_as_the_whole_catalogue(engine: Engine) -> None:
    """Rows may be in any order and may repeat."""
    satrecs = [e.satrec for e in synthetic_catalog(objects=50, epoch_ns=NOW_NS)]
    propagator = Propagator(satrecs, engine=engine)
    whole = propagator.propagate(days_later(0.5, 1.0))
    some = propagator.propagate(days_later(0.5, 1.0), objects=np.array([40, 3, 3]))
    np.testing.assert_allclose(some.r_teme_m, whole.r_teme_m[[40, 3, 3]], rtol=0, atol=ONE_MILLIONTH_KILOMETRE)
    np.testing.assert_array_equal(some.error, whole.error[[40, 3, 3]])
    with pytest.raises(IndexError):
        propagator.propagate(days_later(0.5), objects=np.array([50]))


@both_engines
def test_a_large_selection_that_is_requested_again_has_the_same_states(engine: Engine) -> None:
    """Its own propagator is made at the second request, and another selection in between does not change it."""
    satrecs = [element_set.satrec for element_set in synthetic_catalog(objects=LARGE_SELECTION + 50, epoch_ns=NOW_NS)]
    propagator, by_sgp4 = Propagator(satrecs, engine=engine), Propagator(satrecs, engine="sgp4")
    one, other = np.arange(LARGE_SELECTION), np.arange(LARGE_SELECTION) + 50
    timestamp_ns = np.array([NOW_NS, NOW_NS + 10**12])
    everything = by_sgp4.propagate(timestamp_ns)
    for objects in (one, one, one, other, one, other, other, other):
        states = propagator.propagate(timestamp_ns, objects=objects)
        np.testing.assert_array_equal(states.error, everything.error[objects])
        np.testing.assert_allclose(states.r_teme_m, everything.r_teme_m[objects], atol=ONE_MILLIONTH_KILOMETRE, rtol=0)


@both_engines
@pytest.mark.parametrize("max_age", [None, timedelta(days=2)])
def test_positions_in_kilometres_are_those_of_the_states(engine: Engine, max_age: timedelta | None) -> None:
    """Of near and deep objects, one that decays, one with a negative drag term, and one with another gravity model."""
    satrecs = [
        elements(),
        geostationary(),
        elements(perigee_km=120.0, apogee_km=125.0, bstar=1e-2),
        elements(perigee_km=180.0, apogee_km=200.0, bstar=-5e-2),
        elements(gravity=WGS84),
        elements(epoch_days=NOW_DAYS - 5.0),
    ]
    propagator = Propagator(satrecs, engine=engine, max_age=max_age)
    times_ns = days_later(0.0, 0.1, 1.0, 3.0, 20.0)
    states = propagator.propagate(times_ns)
    assert 0 < states.usable.sum() < states.usable.size
    r_km = propagator.positions_km(times_ns)
    assert r_km.shape == (5, 3, 6)
    assert r_km.flags.c_contiguous
    np.testing.assert_array_equal(np.isfinite(r_km[:, 0]), states.usable.T)
    np.testing.assert_allclose(r_km, states.r_teme_m.transpose(1, 2, 0) / 1e3, rtol=1e-14)


@both_engines
def test_element_sets_far_from_their_epoch_are_stale(engine: Engine) -> None:
    """Beyond 30 days before or after its own epoch an object has no state; just within it has one."""
    satrecs = [elements(), elements(epoch_days=NOW_DAYS + 1.0), geostationary()]
    propagator = Propagator(satrecs, engine=engine)
    states = propagator.propagate(days_later(-30.001, -29.999, 29.999, 30.001))
    stale, fine = PropagationError.STALE, PropagationError.NONE
    assert states.error.tolist() == [
        [stale, fine, fine, stale],
        [stale, stale, fine, fine],
        [stale, fine, fine, stale],
    ]
    np.testing.assert_array_equal(np.isnan(states.r_teme_m).any(axis=-1), ~states.usable)
    np.testing.assert_array_equal(np.isnan(states.v_teme_m_s).any(axis=-1), ~states.usable)
    only = propagator.propagate(days_later(-29.5), objects=np.array([1, 0]))
    assert only.error.tolist() == [[stale], [fine]]


def test_max_age_is_a_setting() -> None:
    """With a bound of one hour, 1.9 hours are stale; without a bound a year is not."""
    strict, lax = (Propagator([elements()], max_age=age) for age in (timedelta(hours=1), None))
    assert strict.propagate(days_later(1.9 / 24, 0.9 / 24)).error.tolist() == [[PropagationError.STALE, 0]]
    assert lax.propagate(days_later(365.0)).error.tolist() == [[0]]


@both_engines
def test_a_decayed_object_has_an_error_and_the_others_have_states(engine: Engine) -> None:
    """An object at 150 km has decayed after 50 days, one at 600 km has not; only its row has NaN and a code."""
    states = Propagator(
        [elements(), elements(perigee_km=140.0, apogee_km=160.0, bstar=1e-3), geostationary()],
        engine=engine,
        max_age=timedelta(days=60),
    ).propagate(days_later(0.0, 50.0))
    assert states.error[1, 0] == PropagationError.NONE
    assert states.error[1, 1] in set(PropagationError) - {PropagationError.NONE, PropagationError.STALE}
    assert states.usable[[0, 2]].all()
    assert np.isfinite(states.r_teme_m[[0, 2]]).all()


@both_engines
def test_a_position_far_beyond_the_orbit_is_implausible(engine: Engine) -> None:
    """SGP4 puts an object with a negative drag term far beyond its apogee, without an error; its state becomes NaN."""
    satrecs = [elements(perigee_km=270.0, apogee_km=272.0, bstar=-0.007), elements()]
    far = states_by_sgp4(satrecs, days_later(-29.9))
    assert far.error.tolist() == [[0], [0]]
    assert np.linalg.norm(far.r_teme_m[0, 0]) > 1e7
    states = Propagator(satrecs, engine=engine).propagate(days_later(-29.9))
    assert states.error.tolist() == [[PropagationError.IMPLAUSIBLE], [PropagationError.NONE]]
    assert np.isnan(states.r_teme_m[0]).all()


def test_nan_without_an_error_code_is_implausible() -> None:
    """SGP4 returns NaN without an error for a deep-space orbit with an inclination of 2e-309 rad."""
    satrec = elements(perigee_km=300.0, apogee_km=20_000.0, inclination_rad=2.225e-309)
    assert np.isnan(states_by_sgp4([satrec], days_later(0.0)).r_teme_m).all()
    assert Propagator([satrec]).propagate(days_later(0.0)).error.tolist() == [[PropagationError.IMPLAUSIBLE]]


def test_without_heyoka_auto_is_sgp4(monkeypatch: pytest.MonkeyPatch) -> None:
    """If heyoka cannot be imported, ``auto`` uses sgp4, ``heyoka`` raises, and `one_thread` does nothing."""
    monkeypatch.setitem(sys.modules, "heyoka", None)
    monkeypatch.setitem(sys.modules, "heyoka.model", None)
    propagator = Propagator([elements()], engine="auto")
    assert propagator.engine == "sgp4"
    assert propagator.propagate(days_later(0.0)).usable.all()
    one_thread()
    with pytest.raises(ModuleNotFoundError):
        Propagator([elements()], engine="heyoka")


@with_heyoka
def test_with_heyoka_auto_is_heyoka() -> None:
    """If heyoka is installed, ``auto`` uses it, except for a catalogue of deep-space objects only."""
    assert Propagator([elements(), geostationary()]).engine == "heyoka"
    assert Propagator([geostationary()]).engine == "sgp4"


@with_heyoka
def test_one_thread_limits_heyoka_to_one_thread() -> None:
    """heyoka reports one thread afterwards."""
    heyoka = pytest.importorskip("heyoka")
    one_thread()
    assert heyoka.get_nthreads() == 1


def test_no_objects_or_no_times_give_empty_states() -> None:
    """The arrays have the right shape."""
    no_times = np.empty(0, dtype=np.int64)
    assert Propagator([]).propagate(days_later(0.0, 1.0)).r_teme_m.shape == (0, 2, 3)
    assert Propagator([elements()], engine="sgp4").propagate(no_times).error.shape == (1, 0)
    assert Propagator([elements()], engine="auto").propagate(no_times).error.shape == (1, 0)
