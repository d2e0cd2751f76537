"""`sgp4_states` compared with single calls of sgp4."""

from __future__ import annotations

import numpy as np
from sgp4.api import SatrecArray

from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.time import julian_date
from sda_ops.catalog import synthetic_catalog

NOW_NS = 1_790_000_000_000_000_000
DECAY_NS = 400 * 86_400 * 10**9


def test_a_batch_equals_single_calls_of_sgp4() -> None:
    """The states, in metres, agree to rounding."""
    satrecs = [elements.satrec for elements in synthetic_catalog(objects=60, epoch_ns=NOW_NS)]
    times_ns = NOW_NS + np.array([0, 1_234_567_890, 3_600 * 10**9])
    states = sgp4_states(SatrecArray(satrecs), times_ns)
    for row, satrec in enumerate(satrecs):
        for column, (jd, fraction) in enumerate(zip(*julian_date(times_ns), strict=True)):
            error, r_km, v_km_s = satrec.sgp4(jd, fraction)
            assert error == 0
            np.testing.assert_allclose(states.r_teme_m[row, column], np.array(r_km) * 1e3, rtol=1e-14)
            np.testing.assert_allclose(states.v_teme_m_s[row, column], np.array(v_km_s) * 1e3, rtol=1e-14)


def test_an_object_with_an_sgp4_error_has_no_state() -> None:
    """Its state is NaN and its error code is passed on; other objects are not affected."""
    satrecs = [elements.satrec for elements in synthetic_catalog(objects=300, epoch_ns=NOW_NS)]
    states = sgp4_states(SatrecArray(satrecs), np.array([NOW_NS, NOW_NS + 50 * DECAY_NS]))
    failed = states.error[:, 1] != 0
    assert failed.any()
    assert np.isnan(states.r_teme_m[failed, 1]).all()
    assert np.isnan(states.v_teme_m_s[failed, 1]).all()
    assert np.isfinite(states.r_teme_m[:, 0]).all()
