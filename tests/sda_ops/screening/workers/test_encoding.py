"""`encoding`: screenings as arrays, which a worker process sends and a checkpoint stores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from orchestrator_adapter.bulkhead.transport.wire import FrameReader, encode
from sda_ops.screening.approaches import Statistics
from sda_ops.screening.workers.encoding import arrays_of, bytes_of, digest_of, record_of, screening_of
from tests.sda_ops.screening.made_up import STATISTICS, assert_same_screening, made_up_screening


@pytest.mark.parametrize(("approaches", "slow_pairs"), [(5, 2), (0, 0), (1, 0)])
def test_a_screening_survives_the_wire_to_the_bit(approaches: int, slow_pairs: int) -> None:
    """Not-a-number, infinity, reasons in any script, and every statistic come back; empty columns keep their types."""
    sent = made_up_screening(approaches=approaches, slow_pairs=slow_pairs)
    data = b"".join(encode("answer", ticket=1, arrays=arrays_of(sent)).buffers)
    reader, frames = FrameReader(), []
    while data:
        buffer = reader.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        frames += reader.received(count)
    assert_same_screening(screening_of(frames[0].arrays), sent)


def test_numpy_scalars_in_statistics_become_numbers() -> None:
    """A statistic that was computed as a numpy scalar is sent as a number of the same value."""
    scalars: dict[str, Any] = {
        "pairs": np.int64(2**40),
        "interpolation_error_m": np.float64(1 / 3),
        "narrow_s": np.float32(0.5),
    }
    computed = dataclasses.replace(STATISTICS, **scalars)
    received = record_of(bytes_of(computed), Statistics)
    assert received == dataclasses.replace(STATISTICS, pairs=2**40, interpolation_error_m=1 / 3, narrow_s=0.5)
    assert (type(received.pairs), type(received.interpolation_error_m)) == (int, float)


def test_arrays_that_are_no_screening_are_rejected() -> None:
    """The error says what is missing or different: the header, a column, or the length of one."""
    arrays = arrays_of(made_up_screening())
    with pytest.raises(ValueError, match=r"^expected a screening, got the arrays \['states'\]$"):
        screening_of({"states": np.zeros(3)})
    without = {name: array for name, array in arrays.items() if name != "approaches.miss_m"}
    with pytest.raises(ValueError, match=r"^approaches: .*\['miss_m'\] are missing$"):
        screening_of(without)
    with pytest.raises(
        ValueError, match=r"^slow_pairs: expected columns of one length, got the shapes \[\(2,\), \(3,\)\]"
    ):
        screening_of({**arrays, "slow_pairs.minima": np.zeros(3, dtype=np.int64)})
    with pytest.raises(ValueError, match=r"^Header: "):
        screening_of({**arrays, "header": arrays["header"][:-1]})


def test_the_digest_identifies_names_types_shapes_and_values() -> None:
    """Each change gives another digest; the order of the names and the layout in memory do not count."""
    table = np.arange(6.0).reshape(2, 3)
    digest = digest_of({"a": table, "b": np.zeros(0)})
    assert digest == digest_of({"b": np.zeros(0), "a": np.asfortranarray(table)})
    others = [
        digest_of({"c": table, "b": np.zeros(0)}),
        digest_of({"a": table.reshape(3, 2), "b": np.zeros(0)}),
        digest_of({"a": table.view(np.int64), "b": np.zeros(0)}),
        digest_of({"a": np.nextafter(table, 9.0), "b": np.zeros(0)}),
        digest_of({"a": table}),
    ]
    assert len({digest, *others}) == 6
