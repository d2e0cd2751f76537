"""The windows against their definition: after every step, they are what sorting and segmenting all accepted items gives."""

from __future__ import annotations

from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.event_time.windows import (
    Added,
    Change,
    Duplicate,
    EventTimeWindows,
    Late,
    Segmentation,
    Session,
    Sliding,
    Tumbling,
)
from tests.helpers.sizes import examples
from tests.sda_ops.event_time.windows_model import Item, Model, effective

Step: TypeAlias = tuple[str, Item] | int

SEGMENTATIONS: st.SearchStrategy[Segmentation] = st.one_of(
    st.builds(Tumbling, size_ns=st.integers(1, 10)),
    st.builds(Sliding, width_ns=st.integers(0, 10)),
    st.integers(1, 6).flatmap(
        lambda gap: st.builds(Session, gap_ns=st.just(gap), longest_ns=st.integers(gap, 4 * gap))
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("AB"), st.builds(Item, st.integers(-20, 40), st.sampled_from("xyz"))),
        st.integers(-20, 50),
    ),
    max_size=40,
)


@settings(max_examples=examples(4_000), deadline=None)
@given(segmentation=SEGMENTATIONS, allowed_ns=st.integers(0, 12), steps=STEPS)
def test_after_every_step_the_effective_windows_are_those_of_the_definition(
    segmentation: Segmentation, allowed_ns: int, steps: list[Step]
) -> None:
    windows = EventTimeWindows[str, Item](segmentation, order=lambda item: item.name, allowed_lateness_ns=allowed_ns)
    models = {key: Model(segmentation, allowed_ns) for key in "AB"}
    changes: list[Change[str, Item]] = []
    for step in steps:
        if isinstance(step, int):
            changes += windows.advance(step)
            for model in models.values():
                model.advance(step)
        else:
            key, item = step
            accepted, late = len(models[key].accepted), len(models[key].late)
            models[key].add(item)
            match windows.add(key, item.time_ns, item):
                case Added(changes=more):
                    changes += more
                    assert len(models[key].accepted) == accepted + 1
                case Late():
                    assert len(models[key].late) == late + 1
                case Duplicate():
                    assert (len(models[key].accepted), len(models[key].late)) == (accepted, late)
        closed = {(key, window) for key, model in models.items() for window in model.closed()}
        assert effective(changes) == closed
    assert windows.late == sum(len(model.late) for model in models.values())

    changes += windows.close_all()
    for model in models.values():
        model.advance(10**30)
    assert effective(changes) == {(key, window) for key, model in models.items() for window in model.closed()}
    assert (windows.active, windows.retained, windows.held) == (0, 0, 0)
