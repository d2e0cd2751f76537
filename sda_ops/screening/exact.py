"""SGP4's own positions of object i at time i, and the derivative of those positions.

SGP4's velocity is not the derivative of its position: near the Earth they differ by 2 cm/s in the median and 9 m/s at most
(strong drag), in deep space by 17 m/s. A time of closest approach from that velocity would be wrong by seconds for slow
pairs. Here velocity is the central difference of positions `DIFFERENCE_S` before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sgp4.api import Satrec

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import SECONDS_PER_DAY, Floats, Nanoseconds, julian_date
from sda_ops.screening.objects import Rows

DIFFERENCE_S = 0.25
"""Half the interval of the central difference; its error is t²/6 times the third derivative: 1e-4 m/s in low orbit."""


class ExactStates(NamedTuple):
    """States in TEME of date.

    Attributes:
        r_teme_m: ``(n, 3)``.
        v_teme_m_s: ``(n, 3)``, the derivative of the position.
        failed: ``(n,)``, true where SGP4 has an error at one of the three times; the state is meaningless there.
    """

    r_teme_m: Floats
    v_teme_m_s: Floats
    failed: npt.NDArray[np.bool_]


def exact_states(satrecs: Sequence[Satrec], objects: Rows, timestamp_ns: Nanoseconds) -> ExactStates:
    """The state of ``objects[i]``, a row of ``satrecs``, at ``timestamp_ns[i]``, UTC. About 1 µs a state and time."""
    count = len(objects)
    order = np.argsort(objects, kind="stable")
    grouped = objects[order]
    jd, fraction = julian_date(timestamp_ns[order])
    offset_days = DIFFERENCE_S / SECONDS_PER_DAY
    three_jd = np.repeat(jd, 3)
    three_fractions = (fraction[:, np.newaxis] + np.array([-offset_days, 0.0, offset_days])).ravel()
    r_km = np.empty((3 * count, 3))
    error = np.empty(3 * count, dtype=np.uint8)
    first = np.flatnonzero(np.diff(grouped, prepend=-1))
    last = np.append(first, count)[1:]
    for begin, end, row in zip((3 * first).tolist(), (3 * last).tolist(), grouped[first].tolist(), strict=True):
        error[begin:end], r_km[begin:end], _ = satrecs[row].sgp4_array(three_jd[begin:end], three_fractions[begin:end])
    r_m = np.empty((count, 3))
    v_m_s = np.empty((count, 3))
    failed = np.empty(count, dtype=np.bool_)
    r_m[order] = r_km[1::3] * M_PER_KM
    v_m_s[order] = (r_km[2::3] - r_km[0::3]) * (M_PER_KM / (2.0 * DIFFERENCE_S))
    failed[order] = (error.reshape(-1, 3) != 0).any(axis=1) | ~np.isfinite(r_km).reshape(-1, 9).all(axis=1)
    return ExactStates(r_m, v_m_s, failed)
