"""The watermark: a control item that promises that no item with an earlier event time follows.

Pinned: the mark ``t`` promises no item with an event time ``< t``. So a half-open window ``[a, b)`` is complete when
``b <= t``, and an inclusive one ``[a, b]`` when ``b < t``.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator_adapter import Combiner, Control, LeastOfInputs


@dataclass(frozen=True, slots=True)
class Watermark(Control):
    """A promise of one source, or the least one of several.

    Attributes:
        time_ns: No item with an event time before this follows, UTC nanoseconds. ``None``: the source is idle. It promises
            nothing, and a fan-in does not wait for it.
        source: Whose promise it is. Behind a fan-in it names the source that holds the others back.
    """

    time_ns: int | None
    source: str


def least_watermark() -> Combiner:
    """The combiner of a fan-in: the least of the inputs' marks, and only when it advances.

    ``merge(combine={Watermark: least_watermark()})``. Sources that have ended or are idle leave the minimum. See ``orchestrator_adapter.LeastOfInputs``.
    """
    return LeastOfInputs(lambda mark: mark.time_ns)
