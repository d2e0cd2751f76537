"""What an assessment assumes because a catalogue of element sets does not say it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator_adapter import check_fields
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.screening.assessment.fleets import Fleets
from sda_ops.screening.assessment.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class AspectSigmas:
    """The assumed shape of the errors of one object. Only its proportions matter.

    The defaults are those with which CelesTrak's maximum probabilities are reproduced.

    Attributes:
        radial_m: One standard deviation away from the Earth's centre, > 0.
        in_track_m: Along the motion, > 0.
        cross_track_m: Along the orbit's normal, > 0.
    """

    radial_m: float = 100.0
    in_track_m: float = 300.0
    cross_track_m: float = 100.0

    def __post_init__(self) -> None:
        check_fields(
            "AspectSigmas",
            *(
                (name, getattr(self, name), 0.0 < getattr(self, name) < np.inf, "> 0 and finite")
                for name in ("radial_m", "in_track_m", "cross_track_m")
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What an assessment assumes because a catalogue does not say it.

    Attributes:
        sizes: The hard-body radii.
        aspect: The shape of the covariance for the maximum probability, the same for every object.
        fleets: Which satellites one operator steers.
        errors: The uncertainty of element sets by age, for `Conjunctions.probability`. ``None``: it is not computed.
    """

    sizes: Sizes = field(default_factory=Sizes)
    aspect: AspectSigmas = field(default_factory=AspectSigmas)
    fleets: Fleets = field(default_factory=Fleets)
    errors: ElementSetErrors | None = None
