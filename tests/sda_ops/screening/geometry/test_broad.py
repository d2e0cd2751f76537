"""The broad phases: no pair that comes close is left out, in either implementation."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from sda_ops.screening.geometry.bounds import Bounds
from sda_ops.screening.geometry.broad import BroadPhaseName, TreePairs, broad_phase, pairs_in_slices
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from tests.sda_ops.screening.orbits import EPOCH_NS, HOUR_NS, random_orbits, screened

pytestmark = pytest.mark.usefixtures("numba_once")

PREPARED = PreparedObjects(screened(random_orbits(160, seed=9)), engine="sgp4")


@pytest.mark.parametrize("broad", ["scipy", "numba"])
@pytest.mark.parametrize(("slice_s", "miss_km"), [(20.0, 200.0), (60.0, 100.0), (120.0, 500.0)])
def test_every_pair_that_comes_close_in_a_slice_is_found_once(
    broad: BroadPhaseName, slice_s: float, miss_km: float
) -> None:
    if broad == "numba":
        pytest.importorskip("numba")
    ephemeris = Ephemeris(PREPARED, EPOCH_NS, EPOCH_NS + HOUR_NS // 12, slice_s=slice_s, interpolation_km=0.025)
    bounds = Bounds(miss_km=miss_km, half_s=0.5 * slice_s, interpolation_km=0.025)
    states = ephemeris.states(ephemeris.first_slice, ephemeris.end_slice)

    pairs = pairs_in_slices(states, bounds, broad_phase(broad))

    found = set(zip(*(column.tolist() for column in pairs), strict=True))
    assert len(found) == len(pairs.first)
    assert (pairs.first < pairs.second).all()
    close = _close(ephemeris, slice_s, miss_km)
    assert len(close) > 10
    assert close <= found
    assert len(found) < 0.2 * len(states) * len(PREPARED) ** 2 / 2


def _close(ephemeris: Ephemeris, slice_s: float, miss_km: float) -> set[tuple[int, int, int]]:
    """Slices and pairs within the miss distance at one of eleven times of the slice, by all distances."""
    count = len(PREPARED)
    rows, columns = np.triu_indices(count, 1)
    close = set()
    for number in range(len(ephemeris)):
        for offset_s in np.linspace(0.0, slice_s, 11):
            at_s = np.full(count, number * slice_s + offset_s)
            r_km, _ = ephemeris.at(np.arange(count), at_s)
            near = np.linalg.norm(r_km[:, rows] - r_km[:, columns], axis=0) <= miss_km
            close |= {(number, int(i), int(j)) for i, j in zip(rows[near], columns[near], strict=True)}
    return close


def test_without_numba_scipy_is_chosen_or_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_numba(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sda_ops.screening.geometry.broad_numba":
            raise ModuleNotFoundError("No module named 'numba'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_numba)
    assert isinstance(broad_phase("auto"), TreePairs)
    with pytest.raises(ModuleNotFoundError) as raised:
        broad_phase("numba")
    assert str(raised.value) == (
        "broad phase 'numba': No module named 'numba'; install the extra 'fast' (numba), or choose 'scipy'"
    )
