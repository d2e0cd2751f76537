"""The broad phase: from all pairs of objects to those that may come within the miss distance in a slice.

It applies the bounds a (distance) and c (straight line) of `sda_ops.screening.geometry.bounds`. This is the one step with two
implementations: scipy's k-d tree, which is always there, and compiled loops (`sda_ops.screening.geometry.broad_numba`, the extra
``fast``). The tree applies b (radius) as well, because it is a cheap test. The two differ in which surplus pairs they return,
not in which events are found: the next phase applies c again.

Objects are *wide* if they are faster than `NORMAL_KM_S` or have a beta of their own: a distance that is enough for every
pair of normal objects is too small for them. There are few at a time, and each looks for its own neighbours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from sda_ops.astro.time import Floats
from sda_ops.screening.geometry.bounds import BETA_KM_S2, Bounds
from sda_ops.screening.geometry.ephemeris import SliceStates
from sda_ops.screening.objects import Rows

BroadPhaseName: TypeAlias = Literal["auto", "numba", "scipy"]
"""``auto`` is numba if it is installed, otherwise scipy."""

NORMAL_KM_S = 8.0
"""A circular orbit at the surface has 7.9 km/s: only eccentric orbits near a low perigee are faster."""


class OneSlice(NamedTuple):
    """What a broad phase needs of one slice, in columns.

    Attributes:
        r_km: ``(3, n)``.
        v_km_s: ``(3, n)``.
        beta_km_s2: ``(n,)``.
        normal: ``(n,)``, true for objects that have a state and are not wide.
        wide: The columns of wide objects.
    """

    r_km: Floats
    v_km_s: Floats
    beta_km_s2: Floats
    normal: npt.NDArray[np.bool_]
    wide: Rows


class BroadPhase(Protocol):
    """Finds pairs in one slice."""

    @property
    def name(self) -> Literal["numba", "scipy"]: ...

    def pairs(self, one: OneSlice, bounds: Bounds) -> tuple[Rows, Rows]:
        """Columns of the pairs that obey a, b and c: all of them, each once. Some others may be among them."""


class Pairs(NamedTuple):
    """Pairs in slices.

    Attributes:
        place: ``(n,)``, which slice of the states.
        first: ``(n,)``, columns.
        second: ``(n,)``, ``first < second``.
    """

    place: Rows
    first: Rows
    second: Rows


def broad_phase(name: BroadPhaseName) -> BroadPhase:
    """The implementation. Raises ``ModuleNotFoundError`` for ``numba`` if it cannot be used here.

    numba needs a folder that it can write to, for what it compiles: beside this module, or in the user's home, or
    ``NUMBA_CACHE_DIR``.
    """
    if name == "scipy":
        return TreePairs()
    try:
        from sda_ops.screening.geometry.broad_numba import RowPairs  # noqa: PLC0415 - an extra, and 0.3 s to import
    except (ModuleNotFoundError, RuntimeError) as fault:  # RuntimeError: no folder for what it compiles
        if name == "numba":
            raise ModuleNotFoundError(
                f"broad phase 'numba': {fault}; install the extra 'fast' (numba), or choose 'scipy'"
            ) from fault
        return TreePairs()
    return RowPairs()


def pairs_in_slices(states: SliceStates, bounds: Bounds, phase: BroadPhase) -> Pairs:
    """The pairs of every slice, by slice."""
    fast = np.einsum("scn,scn->sn", states.v_km_s, states.v_km_s) > NORMAL_KM_S**2
    wide = fast | (states.beta_km_s2 > BETA_KM_S2)
    wide &= states.alive
    normal = states.alive & ~wide
    place: list[Rows] = []
    found: list[tuple[Rows, Rows]] = []
    for number in range(len(states)):
        one = OneSlice(
            states.r_km[number],
            states.v_km_s[number],
            states.beta_km_s2[number if len(states.beta_km_s2) > 1 else 0],
            normal[number],
            np.flatnonzero(wide[number]),
        )
        first, second = phase.pairs(one, bounds)
        place.append(np.full(len(first), number))
        found.append((np.minimum(first, second), np.maximum(first, second)))
    return Pairs(
        np.concatenate(place),
        np.concatenate([first for first, _ in found]),
        np.concatenate([second for _, second in found]),
    )


def normal_speed_km_s(bounds: Bounds) -> tuple[float, float, float]:
    """For two normal objects: the greatest relative speed, the distance of bound a, and the one of bound c."""
    speed, beta = np.array(2.0 * NORMAL_KM_S), np.array(2.0 * BETA_KM_S2)
    return 2.0 * NORMAL_KM_S, float(bounds.distance_km(speed, beta)), float(bounds.line_km(speed, beta))


class TreePairs:
    """By a k-d tree of the normal objects of each slice."""

    name: Literal["scipy"] = "scipy"

    def pairs(self, one: OneSlice, bounds: Bounds) -> tuple[Rows, Rows]:
        rho_km, change_km = bounds.radial_km(one.r_km, one.v_km_s, one.beta_km_s2)
        radial_km = (rho_km - change_km, rho_km + (change_km + bounds.near_km))
        normal = np.flatnonzero(one.normal)
        tree = KDTree(one.r_km[:, normal].T, balanced_tree=False, compact_nodes=False)
        _, reach_km, _ = normal_speed_km_s(bounds)
        near = tree.query_pairs(reach_km, output_type="ndarray")
        found = [_near(one, radial_km, normal[near[:, 0]], normal[near[:, 1]], bounds)]
        speed_km_s = np.sqrt(np.einsum("cn,cn->n", one.v_km_s[:, one.wide], one.v_km_s[:, one.wide]))
        reaches_km = bounds.distance_km(speed_km_s + NORMAL_KM_S, one.beta_km_s2[one.wide] + BETA_KM_S2)
        neighbours: list[list[int]] = (
            tree.query_ball_point(one.r_km[:, one.wide].T, reaches_km).tolist() if one.wide.size else []
        )
        for number, (column, around) in enumerate(zip(one.wide.tolist(), neighbours, strict=True)):
            others = np.concatenate((normal[np.asarray(around, dtype=np.intp)], one.wide[number + 1 :]))
            found.append(_near(one, radial_km, np.full(len(others), column), others, bounds))
        return np.concatenate([first for first, _ in found]), np.concatenate([second for _, second in found])


def _near(
    one: OneSlice, radial_km: tuple[Floats, Floats], first: Rows, second: Rows, bounds: Bounds
) -> tuple[Rows, Rows]:
    """Those of these pairs that obey b, by their smallest and greatest radii, and c."""
    low_km, high_km = radial_km
    overlap = np.flatnonzero((low_km[first] <= high_km[second]) & (low_km[second] <= high_km[first]))
    first, second = first[overlap], second[overlap]
    d_km = one.r_km[:, second] - one.r_km[:, first]
    w_km_s = one.v_km_s[:, second] - one.v_km_s[:, first]
    beta_km_s2 = one.beta_km_s2[first] + one.beta_km_s2[second]
    near = near_line(d_km, w_km_s, beta_km_s2, bounds)
    return first[near], second[near]


def near_line(d_km: Floats, w_km_s: Floats, beta_km_s2: Floats, bounds: Bounds) -> Rows:
    """Which of these relative states obey bound c."""
    d2 = np.einsum("cn,cn->n", d_km, d_km)
    dw = np.einsum("cn,cn->n", d_km, w_km_s)
    w2 = np.einsum("cn,cn->n", w_km_s, w_km_s)
    least_s = np.clip(-dw / np.maximum(w2, 1e-30), -bounds.half_s, bounds.half_s)
    least2 = d2 + least_s * (2.0 * dw + least_s * w2)
    return np.flatnonzero(least2 <= np.square(bounds.line_km(np.sqrt(w2), beta_km_s2)))
