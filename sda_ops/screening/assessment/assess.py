"""Assessment of close approaches: the states in the orbit's axes, ages, sizes, probabilities, orbit classes and fleets.

What it does not know: the covariances of public element sets, because they have none; sizes beyond a short table; whether a
satellite of a fleet is still steered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.screening.approaches import Approaches
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.encounter import EncounterPlane, aspect_ratio, orbit_axes, rotated_covariance
from sda_ops.screening.assessment.fleets import NO_FLEET, FleetIndices
from sda_ops.screening.assessment.formations import AssessedSlowPairs
from sda_ops.screening.assessment.orbit_classes import OrbitCodes, orbit_classes
from sda_ops.screening.assessment.probability import collision_probability, max_probability
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Conjunctions:
    """Assessed approaches, in the order of the approaches. Every array has ``n`` rows.

    Attributes:
        first: Row numbers of the screened objects.
        second: Row numbers, ``first < second``.
        catalog_number_first: Of the first object.
        catalog_number_second: Of the second object.
        tca_ns: Time of closest approach, UTC.
        miss_m: The distance at that time.
        relative_speed_m_s: The speed at that time.
        relative_position_m: ``(n, 3)``, second minus first: radial, in-track, cross-track of the first object.
        relative_velocity_m_s: ``(n, 3)``, the same for velocities. The axes do not rotate.
        epoch_first_ns: Epoch of the first object's element set, UTC.
        epoch_second_ns: Epoch of the second object's element set, UTC.
        age_first_s: ``tca - epoch``, negative for an element set from the future.
        age_second_s: The same for the second object.
        radius_first_m: Assumed hard-body radius.
        radius_second_m: Assumed hard-body radius.
        aspect_ratio: Of the assumed error ellipse in the encounter plane, >= 1.
        max_probability: The greatest probability over all sizes of the assumed covariance (Alfano 2005); 1 where the miss
            distance is at most the sum of the radii.
        dilution_m: The standard deviation along the miss vector at which it is reached. A larger one lowers the probability
            only because less is known.
        probability: For the given covariances (Foster and Estes 1992); NaN without them.
        orbit_class_first: Values of `OrbitClass`.
        orbit_class_second: Values of `OrbitClass`.
        fleet_first: Index into ``fleets``; -1 for none.
        fleet_second: Index into ``fleets``; -1 for none.
        same_fleet: Whether both belong to one fleet.
        formation: Whether the pair is docked or in formation, by the slow pairs of the same screening.
        fleets: The names of the fleets.
    """

    first: Rows
    second: Rows
    catalog_number_first: npt.NDArray[np.int64]
    catalog_number_second: npt.NDArray[np.int64]
    tca_ns: Nanoseconds
    miss_m: Floats
    relative_speed_m_s: Floats
    relative_position_m: Floats
    relative_velocity_m_s: Floats
    epoch_first_ns: Nanoseconds
    epoch_second_ns: Nanoseconds
    age_first_s: Floats
    age_second_s: Floats
    radius_first_m: Floats
    radius_second_m: Floats
    aspect_ratio: Floats
    max_probability: Floats
    dilution_m: Floats
    probability: Floats
    orbit_class_first: OrbitCodes
    orbit_class_second: OrbitCodes
    fleet_first: FleetIndices
    fleet_second: FleetIndices
    same_fleet: Flags
    formation: Flags
    fleets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def listed(self) -> Flags:
        """Whether a conjunction is of general interest: the pair is of different owners, and not in formation."""
        return ~(self.same_fleet | self.formation)


def assess(
    objects: ScreenedObjects,
    approaches: Approaches,
    *,
    assumptions: Assumptions | None = None,
    slow_pairs: AssessedSlowPairs | None = None,
    covariances_m2: tuple[Floats, Floats] | None = None,
) -> Conjunctions:
    """Everything that is known or assumed about each approach.

    Args:
        objects: The screened objects.
        approaches: The approaches that were found among them.
        assumptions: Sizes, shapes, fleets, errors; by default the built-in ones.
        slow_pairs: Those of the same screening (`assess_slow_pairs`), for `Conjunctions.formation`.
        covariances_m2: ``(n, 3, 3)`` covariances of the positions of the first and the second objects at closest approach,
            each in its own radial, in-track and cross-track axes. They win over ``assumptions.errors``.

    A state that SGP4 cannot compute makes NaN in its row; a screening returns no such approach. Raises ``ValueError`` for
    covariances of another shape.
    """
    given = Assumptions() if assumptions is None else assumptions
    count = len(approaches)
    both = np.concatenate((approaches.first, approaches.second))
    states = exact_states(objects.satrecs, both, np.tile(approaches.tca_ns, 2))
    states.r_teme_m[states.failed] = np.nan
    axes = orbit_axes(states.r_teme_m, states.v_teme_m_s)
    position_m = states.r_teme_m[count:] - states.r_teme_m[:count]
    velocity_m_s = states.v_teme_m_s[count:] - states.v_teme_m_s[:count]
    plane = EncounterPlane.of(position_m, velocity_m_s)

    used, places = np.unique(both, return_inverse=True)
    numbers = objects.columns.catalog_number[used]
    names = [objects.names[row] for row in used.tolist()]
    radius_m = given.sizes.of(numbers.tolist(), names)[places]
    fleet = given.fleets.of(numbers.tolist(), names)[places]
    orbit_class = orbit_classes(objects.columns)[both]
    epoch_ns = objects.columns.epoch_ns[both]
    age_s = (np.tile(approaches.tca_ns, 2) - epoch_ns) / NS_PER_S

    aspect = given.aspect
    variances_m2 = np.array([aspect.radial_m, aspect.in_track_m, aspect.cross_track_m]) ** 2
    ratio = aspect_ratio(_projected(plane, axes, np.broadcast_to(np.diag(variances_m2), (2 * count, 3, 3))))
    combined_m = radius_m[:count] + radius_m[count:]
    greatest = max_probability(approaches.miss_m, combined_m, ratio)

    covariance_m2 = _covariances(objects, approaches, given.errors, covariances_m2)
    probability = np.full(count, np.nan)
    if covariance_m2 is not None:
        probability = collision_probability(plane.miss_m, _projected(plane, axes, covariance_m2), combined_m)
    return Conjunctions(
        first=approaches.first,
        second=approaches.second,
        catalog_number_first=objects.columns.catalog_number[approaches.first],
        catalog_number_second=objects.columns.catalog_number[approaches.second],
        tca_ns=approaches.tca_ns,
        miss_m=approaches.miss_m,
        relative_speed_m_s=approaches.relative_speed_m_s,
        relative_position_m=np.einsum("nij,nj->ni", axes[:count], position_m),
        relative_velocity_m_s=np.einsum("nij,nj->ni", axes[:count], velocity_m_s),
        epoch_first_ns=epoch_ns[:count],
        epoch_second_ns=epoch_ns[count:],
        age_first_s=age_s[:count],
        age_second_s=age_s[count:],
        radius_first_m=radius_m[:count],
        radius_second_m=radius_m[count:],
        aspect_ratio=ratio,
        max_probability=greatest.probability,
        dilution_m=greatest.sigma_m,
        probability=probability,
        orbit_class_first=orbit_class[:count],
        orbit_class_second=orbit_class[count:],
        fleet_first=fleet[:count],
        fleet_second=fleet[count:],
        same_fleet=(fleet[:count] == fleet[count:]) & (fleet[:count] != NO_FLEET),
        formation=(
            np.zeros(count, dtype=np.bool_)
            if slow_pairs is None
            else slow_pairs.are_together(approaches.first, approaches.second, objects=len(objects))
        ),
        fleets=given.fleets.names,
    )


def _projected(plane: EncounterPlane, axes: Floats, covariance_m2: Floats) -> Floats:
    """The sum of the first and the second objects' covariances, each in its own axes, projected on the encounter plane."""
    rotated_m2 = rotated_covariance(axes, covariance_m2)
    count = len(rotated_m2) // 2
    return plane.projected(rotated_m2[:count] + rotated_m2[count:])


def _covariances(
    objects: ScreenedObjects,
    approaches: Approaches,
    errors: ElementSetErrors | None,
    given_m2: tuple[Floats, Floats] | None,
) -> Floats | None:
    """The covariances of the first objects, then of the second ones, each in its own axes; ``None`` without any."""
    count = len(approaches)
    if given_m2 is not None:
        if any(each.shape != (count, 3, 3) for each in given_m2):
            raise ValueError(
                f"covariances_m2: expected two arrays of shape ({count}, 3, 3), got {[each.shape for each in given_m2]}"
            )
        return np.concatenate(given_m2)
    if errors is None:
        return None
    catalog_errors = CatalogErrors(
        errors, epoch_ns=objects.columns.epoch_ns, mean_motion_rad_s=objects.columns.no_kozai / 60.0
    )
    both = np.concatenate((approaches.first, approaches.second))
    variances_m2 = catalog_errors.sigmas_m(both, np.tile(approaches.tca_ns, 2)) ** 2
    return variances_m2[:, :, np.newaxis] * np.eye(3)
