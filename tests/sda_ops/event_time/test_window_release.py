from __future__ import annotations

import random

from sda_ops.event_time.segmentation import Session
from tests.sda_ops.event_time.windows_model import Item, windows_of


def test_each_item_is_released_once_and_is_not_held_any_more() -> None:
    """In random order, with a cap that releases windows early."""
    rng = random.Random(3)
    released: list[Item] = []
    windows = windows_of(
        Session(gap_ns=5, longest_ns=20),
        allowed_lateness_ns=7,
        max_held=40,
        on_release=lambda _, items: released.extend(items),
    )
    accepted = []
    for n in range(500):
        item = Item(n + rng.randrange(-10, 10), str(n))
        late = windows.late
        windows.add("abc"[n % 3], item)
        if windows.late == late:
            accepted.append(item)
        if n % 10 == 0:
            windows.advance(n - 10)
        held = [item for key in "abc" for item in windows.items_of(key)]
        assert len(held) == windows.held
        assert sorted(held + released) == sorted(accepted)
    windows.close_all()
    assert sorted(released) == sorted(accepted)
    assert windows.released_early or windows.closed_early


def test_a_key_is_open_until_the_mark_reaches_the_end_of_its_last_window() -> None:
    windows = windows_of(Session(gap_ns=5, longest_ns=20))
    assert windows.open_until_ns("a") is None
    windows.add("a", Item(10, "x"))
    windows.advance(14)
    assert windows.open_until_ns("a") == 15
    windows.add("a", Item(14, "y"))
    assert windows.open_until_ns("a") == 19
    windows.advance(19)
    assert windows.open_until_ns("a") is None
