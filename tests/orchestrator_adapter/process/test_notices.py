"""The board of notices: bounded, for any thread, and no notice is given out twice."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from orchestrator_adapter import OperatorGraph, source_of
from orchestrator_adapter.process import Notice, NoticeBoard
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.notices import notice
from tests.helpers.support import ROOT


def test_notices_are_taken_once_in_order_with_the_time_of_their_post() -> None:
    """The second ``take`` has nothing."""
    times = iter([10, 20])
    board = NoticeBoard(now_ns=lambda: next(times))
    board.post(notice(1))
    board.post(notice(2))
    assert board.take() == [(10, notice(1)), (20, notice(2))]
    assert board.take() == []


def test_a_full_board_drops_the_oldest_notice_and_counts_it() -> None:
    """Of five notices, the last two stay."""
    board = NoticeBoard(2)
    for number in range(5):
        board.post(notice(number))
    assert [each.key for _, each in board.take()] == ["3", "4"]
    assert board.dropped == 3


def test_each_post_calls_the_listener_after_the_notice_is_there() -> None:
    """So that the listener never misses one."""
    board = NoticeBoard()
    board.post(notice(0))
    seen: list[list[str]] = []
    board.notify(lambda: seen.append([each.key for _, each in board.take()]))
    board.post(notice(1))
    board.post(notice(2))
    assert seen == [["0", "1"], ["2"]]


def test_notices_of_many_threads_are_each_taken_once() -> None:
    """Four threads post while another one takes."""
    board, taken, done = NoticeBoard(10_000), [], threading.Event()

    def post(first: int) -> None:
        for number in range(first, first + 500):
            board.post(notice(number))

    def take() -> None:
        while not done.is_set():
            taken.extend(board.take())

    taking = threading.Thread(target=take)
    posting = [threading.Thread(target=post, args=(first,)) for first in range(0, 2_000, 500)]
    for thread in (taking, *posting):
        thread.start()
    for thread in posting:
        thread.join()
    done.set()
    taking.join()
    taken.extend(board.take())
    assert sorted(int(each.key) for _, each in taken) == list(range(2_000))
    assert board.dropped == 0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("event", "prefect.flow-run.Completed", "a name of your own"),
        ("event", "orchestrator.operator.restart", "a name of your own"),
        ("resource", "prefect.flow.1", "an id of your own"),
        ("key", "", "not empty"),
        ("artifact", "Alert 1", "lowercase letters, digits and dashes"),
    ],
)
def test_a_notice_that_prefect_would_confuse_or_reject_is_an_error(field: str, value: str, expected: str) -> None:
    """The message names the field and says what was expected."""
    values = {"event": "e", "key": "k", "resource": "r", "title": "t", "artifact": "a", "markdown": "m", field: value}
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        Notice(**values)  # type: ignore[arg-type] # all of them are text
    assert field in str(raised.value)


def test_the_example_of_the_page_posts_a_notice() -> None:
    """``docs/automations.md``, "Notices of your own pipeline"."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "automations.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "NoticeBoard" in block]
    names: dict[str, Any] = {"OperatorGraph": OperatorGraph}
    exec(block, names)
    names["report"]("t-17", "# Lost")
    pipeline = names["pipeline"](chain(source_of([1]), CollectSink()))
    ((_, posted),) = pipeline.notices.take()
    assert (posted.event, posted.resource, posted.artifact) == ("track.lost", "track.t-17", "track-t-17")
