from __future__ import annotations

from random import Random
from unittest.mock import patch

from sda_ops.event_time.calendar_queue import CalendarQueue, Ending


def test_what_waits_comes_in_the_order_of_its_ends() -> None:
    """Against a search of all entries: ends that grow, entries that are taken out, and added again anywhere."""
    for seed in range(200):
        rng = Random(seed)
        queues = [CalendarQueue[Ending](slice_ns=rng.choice((1, 4, 30))) for _ in range(2)]
        entries = [Ending(0) for _ in range(6)]
        for _ in range(60):
            entry, queue = rng.choice(entries), rng.choice(queues)
            match rng.randrange(5):
                case 0 if entry.queue is not None:
                    entry.end_ns += rng.randrange(6)
                case 1:
                    entry.queue = None
                case 2 | 3:
                    entry.end_ns = rng.randrange(-20, 40)
                    queue.add(entry)
                case _:
                    until_ns = rng.randrange(-20, 60)
                    due_ns = min((each.end_ns for each in entries if each.queue is queue), default=until_ns + 1)
                    found = queue.pop(until_ns)
                    assert (found.end_ns if found else None) == (due_ns if due_ns <= until_ns else None)
                    assert found is None or found.queue is None
        for queue in queues:
            ends = [each.end_ns for each in entries if each.queue is queue]
            popped = []
            while (each := queue.pop(1_000)) is not None:
                popped.append(each.end_ns)
            assert popped == sorted(ends)
            assert (len(queue), queue.next_ns) == (0, None)


def test_a_slice_whose_time_has_come_is_not_sorted_again_for_each_entry() -> None:
    """500 entries of one slice, each of which is added to it again: each is placed twice."""
    placed, sound = 0, CalendarQueue._placed

    def counted(queue: CalendarQueue[Ending], entry: Ending) -> tuple[int, int, Ending]:
        nonlocal placed
        placed += 1
        return sound(queue, entry)

    queue = CalendarQueue[Ending](slice_ns=10_000)
    for n in range(500):
        queue.add(Ending(n))
    with patch.object(CalendarQueue, "_placed", counted):
        for n in range(500):
            entry = queue.pop(9_999)
            assert entry is not None
            assert entry.end_ns == n
            entry.end_ns += 1_000
            queue.add(entry)
    assert placed == 1_000


def test_what_is_due_at_the_same_time_comes_in_the_order_in_which_it_was_added() -> None:
    queue, entries = CalendarQueue[Ending](slice_ns=10), [Ending(5) for _ in range(4)]
    for entry in entries[:2]:
        queue.add(entry)
    assert queue.pop(9) is entries[0]
    for entry in entries[2:]:
        queue.add(entry)
    assert [queue.pop(9) for _ in range(4)] == [*entries[1:], None]
