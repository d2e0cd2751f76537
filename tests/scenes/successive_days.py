"""The element sets of a catalogue a day later: each orbit propagated, refitted at a new epoch, and with the errors of a new fit.

`refitted` finds mean elements whose SGP4 state at the new epoch is that of the old set there, by fixed-point iteration on
equinoctial elements (V. Chobotov (ed.), Orbital Mechanics, 3rd ed., chapter 9.6 has their formulas): the difference between the
wanted and the computed osculating elements is added to the mean elements. `perturbed` adds to each the errors that element sets
are assumed to have: independent of the day before, so that both sets of an object have the error of one fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_DAY, Floats, julian_date
from sda_ops.catalog.columns import MU_WGS72_KM3_S2, ElementColumns
from sda_ops.catalog.elements import SGP4_EPOCH_JD
from sda_ops.propagation.uncertainty import ElementSetErrors

_ITERATIONS = 40
_CONVERGED_KM = 1e-3
_S_PER_MIN = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Refitted:
    """Element sets at new epochs.

    Attributes:
        columns: Those of all objects; of those that are not ``converged``, the old ones.
        error_m: ``(objects,)``, the distance of the new set's position from the old set's at the new epoch.
        converged: Where that is below a metre.
    """

    columns: ElementColumns
    error_m: Floats
    converged: npt.NDArray[np.bool_]


def refitted(old: ElementColumns, later_ns: npt.NDArray[np.int64]) -> Refitted:
    """Mean elements at the epochs plus ``later_ns``, ``(objects,)``, of the same orbits by SGP4."""
    epoch_ns = old.epoch_ns + later_ns
    jd, fraction = julian_date(epoch_ns)
    wanted_km = np.array(
        [each.sgp4(*when)[1:] for each, when in zip(old.satrecs(), zip(jd, fraction, strict=True), strict=True)]
    )
    usable = np.isfinite(wanted_km).all(axis=(1, 2)) & (np.abs(wanted_km).sum(axis=(1, 2)) > 0)
    wanted_km[~usable] = np.array([[7_000.0, 0.0, 0.0], [0.0, 7.5, 0.5]])
    wanted = _equinoctial(wanted_km)
    # The first guess: the mean elements are the osculating ones.
    arrays: dict[str, npt.NDArray[Any]] = {name: column.copy() for name, column in old.arrays().items()}
    arrays |= {"jdsatepoch": jd, "jdsatepochF": fraction, "sgp4_epoch_days": (jd - SGP4_EPOCH_JD) + fraction}
    mean = wanted.copy()
    best = mean.copy()
    best_km = np.full(len(old), np.inf)
    for _ in range(_ITERATIONS):
        columns = ElementColumns.from_arrays(arrays | _mean_elements(mean))
        states_km = np.array([each.sgp4_tsince(0.0)[1:] for each in columns.satrecs()])
        failed = ~np.isfinite(states_km).all(axis=(1, 2)) | (np.abs(states_km).sum(axis=(1, 2)) == 0)
        states_km[failed] = wanted_km[failed]
        error_km = np.where(failed, np.inf, np.linalg.norm(states_km[:, 0] - wanted_km[:, 0], axis=1))
        better = error_km < best_km
        best[better], best_km[better] = mean[better], error_km[better]
        step = wanted - _equinoctial(states_km)
        step[:, 5] = (step[:, 5] + np.pi) % (2 * np.pi) - np.pi
        mean = mean + np.where(failed[:, np.newaxis], 0.0, step)
        eccentricity = np.hypot(mean[:, 1], mean[:, 2])
        mean[:, 1:3] *= np.where(eccentricity > 0.98, 0.98 / eccentricity, 1.0)[:, np.newaxis]
    converged = usable & (best_km < _CONVERGED_KM)
    fitted = ElementColumns.from_arrays(arrays | _mean_elements(best)).arrays()
    chosen = {name: np.where(converged, fitted[name], column) for name, column in old.arrays().items()}
    return Refitted(ElementColumns.from_arrays(chosen), best_km * 1_000.0, converged)


def perturbed(columns: ElementColumns, errors: ElementSetErrors, rng: np.random.Generator) -> ElementColumns:
    """The elements with the errors of one fit, normally distributed. Objects that share their elements share the error."""
    arrays: dict[str, npt.NDArray[Any]] = {name: column.copy() for name, column in columns.arrays().items()}
    shared = np.stack(
        [arrays[name] for name in ("sgp4_epoch_days", "ecco", "argpo", "inclo", "mo", "no_kozai", "nodeo")]
    )
    sets, which = np.unique(shared, axis=1, return_inverse=True)
    draws = rng.standard_normal((6, sets.shape[1]))[:, which.reshape(-1)]
    near = columns.near_earth
    sigma = {
        name: np.where(near, getattr(errors.near_earth, name), getattr(errors.deep_space, name)) / 1_000.0
        for name in ("radial_m", "in_track_m", "cross_track_m", "in_track_m_per_day")
    }
    motion_rad_s = arrays["no_kozai"] / _S_PER_MIN
    axis_km = np.cbrt(MU_WGS72_KM3_S2 / motion_rad_s**2)
    mean = _of_mean_elements(arrays)
    # Along the track at the epoch, and its growth: a day's difference in mean motion.
    mean[:, 5] += sigma["in_track_m"] * draws[0] / axis_km
    mean[:, 0] += sigma["in_track_m_per_day"] * draws[1] / axis_km / 86_400.0
    # Radial: eccentricity; across: the plane's two directions.
    mean[:, 1] += sigma["radial_m"] * draws[2] / axis_km
    mean[:, 2] += sigma["radial_m"] * draws[3] / axis_km
    across = sigma["cross_track_m"] / axis_km / 2.0 * (1.0 + mean[:, 3] ** 2 + mean[:, 4] ** 2)
    mean[:, 3] += across * draws[4]
    mean[:, 4] += across * draws[5]
    return ElementColumns.from_arrays(arrays | _mean_elements(mean))


def a_day_later(
    old: ElementColumns, rng: np.random.Generator, *, errors: ElementSetErrors | None = None
) -> tuple[ElementColumns, int]:
    """A new set of each object, some 0.6 to 1.4 days after the old one, and how many could not be refitted."""
    later_ns = (rng.uniform(0.6, 1.4, len(old)) * NS_PER_DAY).astype(np.int64)
    shared = np.stack([old.arrays()[name] for name in ("sgp4_epoch_days", "ecco", "mo", "no_kozai", "nodeo")])
    _, first, which = np.unique(shared, axis=1, return_index=True, return_inverse=True)
    later_ns = later_ns[first[which.reshape(-1)]]
    fit = refitted(old, later_ns)
    new = perturbed(fit.columns, errors or ElementSetErrors(), rng)
    kept = {name: np.where(fit.converged, new.arrays()[name], column) for name, column in old.arrays().items()}
    return ElementColumns.from_arrays(kept), int((~fit.converged).sum())


def _equinoctial(states: Floats) -> Floats:
    """``(n, 2, 3)`` positions and velocities, km and km/s, as ``(n, 6)``: mean motion, h, k, p, q, mean longitude."""
    r, v = states[:, 0], states[:, 1]
    radius = np.linalg.norm(r, axis=1)
    axis = 1.0 / np.maximum(1e-9, 2.0 / radius - (v * v).sum(axis=1) / MU_WGS72_KM3_S2)
    momentum = np.cross(r, v)
    w = momentum / np.linalg.norm(momentum, axis=1)[:, np.newaxis]
    p, q = w[:, 0] / (1.0 + w[:, 2]), -w[:, 1] / (1.0 + w[:, 2])
    scale = 1.0 / (1.0 + p * p + q * q)
    f = np.stack((1.0 - p * p + q * q, 2.0 * p * q, -2.0 * p), axis=1) * scale[:, np.newaxis]
    g = np.stack((2.0 * p * q, 1.0 + p * p - q * q, 2.0 * q), axis=1) * scale[:, np.newaxis]
    eccentric = np.cross(v, momentum) / MU_WGS72_KM3_S2 - r / radius[:, np.newaxis]
    h, k = (eccentric * g).sum(axis=1), (eccentric * f).sum(axis=1)
    x, y = (r * f).sum(axis=1), (r * g).sum(axis=1)
    root = np.sqrt(np.maximum(1e-12, 1.0 - h * h - k * k))
    b = 1.0 / (1.0 + root)
    cosine = k + ((1.0 - k * k * b) * x - h * k * b * y) / (axis * root)
    sine = h + ((1.0 - h * h * b) * y - h * k * b * x) / (axis * root)
    longitude = np.arctan2(sine, cosine) + h * cosine - k * sine
    return np.stack((np.sqrt(MU_WGS72_KM3_S2 / axis**3), h, k, p, q, longitude), axis=1)


def _mean_elements(mean: Floats) -> dict[str, Floats]:
    """Columns of element sets from equinoctial mean elements."""
    motion, h, k, p, q, longitude = mean.T
    node, direction = np.arctan2(p, q), np.arctan2(h, k)
    return {
        "no_kozai": np.maximum(motion, 1e-9) * _S_PER_MIN,
        "ecco": np.hypot(h, k),
        "inclo": 2.0 * np.arctan(np.hypot(p, q)),
        "nodeo": node % (2.0 * np.pi),
        "argpo": (direction - node) % (2.0 * np.pi),
        "mo": (longitude - direction) % (2.0 * np.pi),
    }


def _of_mean_elements(arrays: dict[str, npt.NDArray[Any]]) -> Floats:
    """The inverse of `_mean_elements`."""
    node, direction = arrays["nodeo"], arrays["nodeo"] + arrays["argpo"]
    tangent = np.tan(arrays["inclo"] / 2.0)
    return np.stack(
        (
            arrays["no_kozai"] / _S_PER_MIN,
            arrays["ecco"] * np.sin(direction),
            arrays["ecco"] * np.cos(direction),
            tangent * np.sin(node),
            tangent * np.cos(node),
            direction + arrays["mo"],
        ),
        axis=1,
    )
