from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.bulkhead.transport.wire import Failure, Frame, FrameReader, Message, encode

DTYPES = ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]


def joined(message: Message) -> bytes:
    return b"".join(bytes(buffer) for buffer in message.buffers)


def read(data: bytes, portion: int = 1 << 20, **options: Any) -> list[Frame]:
    """The frames in ``data``, received in portions."""
    reader, frames, at = FrameReader(**options), [], 0
    while at < len(data):
        buffer = reader.buffer()
        count = min(len(buffer), portion, len(data) - at)
        buffer[:count] = data[at : at + count]
        frames += reader.received(count)
        at += count
    assert not reader.inside_frame
    return frames


def raw(header: object, payload: bytes = b"", *, payload_bytes: int | None = None, magic: bytes = b"BLK1") -> bytes:
    """A frame with any header."""
    head = msgspec.msgpack.encode(header)
    stated = len(payload) if payload_bytes is None else payload_bytes
    return struct.pack("<4sIQ", magic, len(head), stated) + head + payload


@given(
    st.dictionaries(
        st.text(max_size=8),
        arrays_of.arrays(
            st.sampled_from(DTYPES), arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
        ),
        max_size=4,
    ),
    st.integers(1, 200),
)
def test_a_decoded_frame_equals_the_encoded_one_for_any_portion_size(
    sent: dict[str, NDArray[Any]], portion: int
) -> None:
    """Names, order, dtype, shape and every bit, for two frames one after the other, received in portions of any size."""
    first = encode("call", ticket=7, name="method", arrays=sent)
    frames = read(joined(first) + joined(encode("stop")), portion)
    assert [(frame.header.kind, frame.header.ticket, frame.header.name) for frame in frames] == [
        ("call", 7, "method"),
        ("stop", 0, ""),
    ]
    received = frames[0].arrays
    assert list(received) == list(sent)
    for name, array in sent.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        assert received[name].tobytes() == array.tobytes()
        assert received[name].flags.writeable


@pytest.mark.parametrize("portion", [1_000, 100_000, 1 << 30])
def test_a_large_array_is_received_into_its_own_memory_in_bounded_portions(portion: int) -> None:
    """No buffer is larger than ``at_once``; a megabyte arrives complete, and so does the small frame behind it."""
    sent = np.arange(131_072, dtype=np.int64)
    data = joined(encode("answer", ticket=1, arrays={"a": sent, "none": np.empty((0, 3)), "b": sent[:5]}))
    frames = read(data + joined(encode("ready")), portion, at_once=50_000)
    assert np.array_equal(frames[0].arrays["a"], sent)
    assert np.array_equal(frames[0].arrays["b"], sent[:5])
    assert frames[1].header.kind == "ready"
    reader = FrameReader(at_once=50_000)
    reader.buffer()[: len(data[:1_000])] = data[:1_000]
    reader.received(1_000)
    assert len(reader.buffer()) == 50_000


def test_arrays_of_any_layout_are_encoded_and_contiguous_ones_are_not_copied() -> None:
    """Fortran order, strides and read-only views arrive with equal values; a contiguous array is sent from its own memory."""
    grid = np.arange(12.0).reshape(3, 4)
    locked = grid.copy()
    locked.flags.writeable = False
    sent = {"fortran": np.asfortranarray(grid), "strided": grid[::2, 1::2], "scalar": np.array(3), "locked": locked}
    (frame,) = read(joined(encode("call", arrays=sent)))
    assert all(np.array_equal(frame.arrays[name], array) for name, array in sent.items())
    assert frame.arrays["scalar"].shape == ()
    buffer = encode("call", arrays={"grid": grid}).buffers[1]
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), grid)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            np.array(["text"]),
            TypeError,
            "array 'a': expected little-endian booleans, integers or floats, got dtype <U4",
        ),
        (np.array([None]), TypeError, "got dtype object"),
        (np.array([1], dtype=">i4"), TypeError, "got dtype >i4"),
        (np.array([1j]), TypeError, "got dtype complex128"),
        (np.array(["2026-01-01"], dtype="datetime64[ns]"), TypeError, r"got dtype datetime64\[ns\]"),
        ([1, 2], TypeError, "expected a numpy array, got list"),
        (np.empty((1,) * 9), ValueError, "expected at most 8 dimensions, got 9"),
        (np.zeros(11), ValueError, "expected arrays of at most 80 bytes in total, got 88"),
    ],
)
def test_an_array_that_cannot_be_encoded_raises_an_error_that_names_it(
    bad: Any, error: type[Exception], message: str
) -> None:
    """Objects, texts, times, complex and big-endian numbers, lists, nine dimensions, a byte too many."""
    with pytest.raises(error, match=message):
        encode("call", name="m", arrays={"a": bad}, max_bytes=80)


def test_too_many_arrays_and_too_long_names_raise_when_encoded() -> None:
    """65 arrays; a method, and an array, of 201 characters; names that are short enough but too long together."""
    one = np.zeros(1)
    with pytest.raises(ValueError, match="expected at most 64 arrays, got 65"):
        encode("call", arrays={str(n): one for n in range(65)})
    with pytest.raises(ValueError, match="a name of at most 200 characters, got 201"):
        encode("call", name="m" * 201)
    with pytest.raises(ValueError, match="a name of at most 200 characters"):
        encode("call", arrays={"a" * 201: one})
    assert read(joined(encode("call", arrays={str(n): one for n in range(64)})))
    assert read(joined(encode("call", name="m" * 200)))
    widest = "\U0001d11e"  # four bytes in UTF-8
    with pytest.raises(ValueError, match="expected names that fit in"):
        encode(
            "call", arrays={f"{n:02}{widest * 198}": one for n in range(64)}, failure=Failure("", widest * 8_000, "")
        )


def test_a_failure_of_any_length_fits_and_keeps_the_end_of_its_traceback() -> None:
    """Four-byte characters that fill the header, and an unpaired surrogate, which UTF-8 cannot encode."""
    failure = Failure.of(
        "T" * 999, "\U0001d11e" * 99_999, "begin \udcff" + "\U0001d11e" * 99_999 + "the line that raised"
    )
    (frame,) = read(joined(encode("failed", failure=failure)))
    assert frame.header.failure is not None
    assert frame.header.failure.traceback.endswith("the line that raised")
    assert len(frame.header.failure.type) == 200
    assert Failure.of("T", "\udcff", "").message == "?"


GOOD = ["call", 1, "m", [["a", "<f8", [2]]], None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "expected a frame, got bytes that begin with b'GET '"),
        (b"B", ""),
        (raw(GOOD, bytes(16), magic=b"BLK2"), "expected a frame"),
        (raw(["run", *GOOD[1:]], bytes(16)), "Invalid enum value 'run'"),
        (raw(["call", -1, *GOOD[2:]], bytes(16)), ">= 0"),
        (raw([*GOOD, "more"], bytes(16)), "a header is invalid"),
        (raw({"kind": "call"}), "a header is invalid"),
        (raw(["call", 1, "m", [["a", "|O", [2]]], None], bytes(16)), r"Invalid enum value '\|O'"),
        (raw(["call", 1, "m", [["a", "f8,f8", [1]]], None], bytes(16)), "Invalid enum value"),
        (raw(["call", 1, "m", [["a", "<f8", [-2]]], None], bytes(16)), ">= 0"),
        (raw(["call", 1, "m", [["a", "<f8", [2.0]]], None], bytes(16)), "Expected `int`"),
        (raw(["call", 1, "m", [["a", "<f8", [1] * 9]], None], bytes(8)), "length <= 8"),
        (raw(["call", 1, "m" * 201, [], None]), "length <= 200"),
        (raw(["call", 1, "m", [[str(n), "|u1", [0]] for n in range(65)], None]), "length <= 64"),
        (raw(GOOD, bytes(15)), "expected a payload of 16 bytes according to the shapes, got 15"),
        (raw(GOOD, bytes(17)), "got 17"),
        (raw(["call", 1, "m", [["a", "<f8", [1]], ["a", "<f8", [1]]], None], bytes(16)), "arrays with different names"),
        (raw(["call", 1, "m", [["a", "<f8", [2**62, 2**62]]], None], bytes(16)), "according to the shapes, got 16"),
        (raw(["call", 1, "m", [["a", "<f8", [2**62, 2**62, 0]]], None]), "an impossible shape"),
        (raw(["call", 1, "m", [["a", "|b1", [3]]], None], b"\0\1\2"), "array 'a' has booleans other than 0 and 1"),
        (raw(GOOD, payload_bytes=1_000_001), "expected a payload of at most 1000000 bytes, got 1000001"),
        (struct.pack("<4sIQ", b"BLK1", 1 << 31, 0), "expected a header of at most 65520 bytes"),
        (struct.pack("<4sIQ", b"BLK1", 3, 0) + b"\xa2\xff\xff", "a header"),
        (struct.pack("<4sIQ", b"BLK1", 3, 0) + b"\xc1\xc1\xc1", "a header is invalid"),
    ],
)
def test_invalid_bytes_are_malformed_with_the_reason(data: bytes, message: str) -> None:
    """Each case breaks one rule and raises ``Malformed``; an incomplete but valid beginning raises nothing."""
    if not message:
        reader = FrameReader()
        reader.buffer()[: len(data)] = data
        assert reader.received(len(data)) == []
        assert reader.inside_frame
        return
    with pytest.raises(Malformed, match=message):
        read(data, max_bytes=1_000_000)


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(1, 50))
def test_random_bytes_raise_only_malformed(noise: bytes, at: int, portion: int) -> None:
    """Noise is written over valid frames: the result is a frame, ``Malformed``, or an incomplete frame."""
    good = bytearray(raw(GOOD, np.arange(2.0).tobytes()) * 2)
    good[at : at + len(noise)] = noise
    reader, data = FrameReader(max_bytes=1_000), bytes(good)
    try:
        while data:
            count = min(len(buffer := reader.buffer()), portion, len(data))
            buffer[:count] = data[:count]
            for frame in reader.received(count):
                assert all(math.prod(array.shape) == array.size for array in frame.arrays.values())
            data = data[count:]
    except Malformed:
        pass


def test_no_memory_is_allocated_for_a_payload_before_its_header_is_validated() -> None:
    """A header that announces a terabyte raises an error."""
    with pytest.raises(Malformed, match="at most"):
        read(raw(["call", 1, "m", [["a", "|u1", [1 << 40]]], None], payload_bytes=1 << 40))
