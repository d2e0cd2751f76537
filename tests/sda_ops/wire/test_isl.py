"""ISL beacons: frames, and their assembly from a byte stream."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.observation import Observation, StateTarget, Uncertainty
from sda_ops.wire import isl
from sda_ops.wire.isl import Assembled, FrameAssembler, FramingLost
from sda_ops.wire.malformed import MalformedFrame

INGEST = 1_790_000_000_000_000_001
FIELDS: dict[str, Any] = {
    "satellite_id": 70_007,
    "sequence": 5,
    "timestamp_ns": 1_790_000_000_000_000_000,
    "position_m": (7_000_000.5, -1.0, 2.0),
    "velocity_m_s": (0.25, 7_500.0, -3.0),
    "sigma_position_m": 10.0,
    "sigma_velocity_m_s": 0.125,
}

number = st.floats(allow_nan=False)
vector = st.tuples(number, number, number)
sigma = st.floats(allow_nan=False, width=32)
u32 = st.integers(0, 2**32 - 1)
messages = st.builds(
    isl.encode,
    satellite_id=u32,
    sequence=u32,
    timestamp_ns=st.integers(0, 2**64 - 1),
    position_m=vector,
    velocity_m_s=vector,
    sigma_position_m=sigma,
    sigma_velocity_m_s=sigma,
)


def message(length: int) -> bytes:
    return struct.pack("<I", length) + bytes(length)


def segments_of(stream: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]
    return [*chunks, stream]


def feed_all(assembler: FrameAssembler, chunks: list[bytes]) -> list[Assembled]:
    return [item for chunk in chunks for item in assembler.feed(chunk)]


def comparable(items: list[Assembled]) -> list[tuple[type, bytes, str]]:
    return [
        (type(item), item.frame, item.reason) if isinstance(item, MalformedFrame) else (bytes, item, "")
        for item in items
    ]


def test_a_beacon_becomes_an_observation_field_by_field() -> None:
    """Each wire field is in the record's field of the same meaning; a beacon has no track."""
    observation = isl.decode_frame(isl.encode(**FIELDS)[4:], ingest_timestamp=INGEST)
    assert observation == Observation(
        observation.observation_id,
        "isl-70007",
        "isl",
        1_790_000_000_000_000_000,
        INGEST,
        StateTarget((7_000_000.5, -1.0, 2.0), (0.25, 7_500.0, -3.0)),
        Uncertainty(sigma_position_m=10.0, sigma_velocity_m_s=0.125),
    )


def test_the_layout_is_the_specifications_to_the_byte() -> None:
    """A message assembled by hand, prefix and fields in little-endian order, equals the result of `encode`."""
    by_hand = struct.pack("<I", 72) + struct.pack("<IIQ", 70_007, 5, 1_790_000_000_000_000_000)
    by_hand += struct.pack("<dddddd", 7_000_000.5, -1.0, 2.0, 0.25, 7_500.0, -3.0) + struct.pack("<ff", 10.0, 0.125)
    assert isl.encode(**FIELDS) == by_hand
    assert len(by_hand) == 4 + 72


@given(vector, vector, sigma, sigma)
def test_every_number_is_unchanged_by_encoding_and_decoding(
    position: tuple[float, float, float],
    velocity: tuple[float, float, float],
    sigma_position: float,
    sigma_velocity: float,
) -> None:
    """None is rounded, clipped or checked between encoder and record."""
    changed = {
        "position_m": position,
        "velocity_m_s": velocity,
        "sigma_position_m": sigma_position,
        "sigma_velocity_m_s": sigma_velocity,
    }
    observation = isl.decode_frame(isl.encode(**FIELDS | changed)[4:], ingest_timestamp=INGEST)
    assert observation.target == StateTarget(position, velocity)
    assert observation.uncertainty == Uncertainty(sigma_position_m=sigma_position, sigma_velocity_m_s=sigma_velocity)


def test_the_same_frame_has_the_same_id_and_the_next_one_another() -> None:
    """A repeated beacon is the same observation; the next sequence number is another one."""
    frame, following = isl.encode(**FIELDS)[4:], isl.encode(**FIELDS | {"sequence": 6})[4:]
    ids = [isl.decode_frame(f, ingest_timestamp=at).observation_id for at, f in enumerate((frame, frame, following))]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("size", [0, 71, 73])
def test_a_frame_of_another_size_is_malformed(size: int) -> None:
    """The error has the expected and the actual size, and the bytes."""
    with pytest.raises(MalformedFrame, match=f"^isl frame: expected 72 bytes, got {size}$") as raised:
        isl.decode_frame(bytes(size), ingest_timestamp=INGEST)
    assert raised.value.frame == bytes(size)


sizes = st.lists(st.integers(0, 100), max_size=30)


@given(st.lists(messages, max_size=6), sizes)
def test_any_segmentation_of_the_stream_gives_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    """After the last whole frame no bytes are pending."""
    assembler = FrameAssembler()
    assert feed_all(assembler, segments_of(b"".join(sent), cuts)) == [one[4:] for one in sent]
    assert assembler.pending_bytes == 0


@given(st.lists(st.integers(0, 150), max_size=8), sizes)
def test_frames_of_other_lengths_cost_only_themselves(lengths: list[int], cuts: list[int]) -> None:
    """For any segmentation: 72 bytes are a frame, any other length is malformed, all in stream order.

    A length above the maximum ends the stream; whole frames before it are not lost, and no frame follows.
    """
    stream = b"".join(message(length) for length in lengths)
    whole = comparable(FrameAssembler(max_frame_bytes=100).feed(stream))
    expected: list[tuple[type, bytes]] = []
    for length in lengths:
        if length > 100:
            break
        expected.append((bytes if length == 72 else MalformedFrame, bytes(length)))
    lost = len(expected) < len(lengths)
    assert [(kind, frame) for kind, frame, _ in whole if kind is not FramingLost] == expected
    assert [kind for kind, _, _ in whole].count(FramingLost) == lost

    assembler, collected = FrameAssembler(max_frame_bytes=100), []
    for chunk in segments_of(stream, cuts):
        collected += assembler.feed(chunk)
        if collected and isinstance(collected[-1], FramingLost):
            break
    known = [item for item in comparable(collected) if item[0] is not FramingLost]
    assert known == [item for item in whole if item[0] is not FramingLost]
    assert any(isinstance(item, FramingLost) for item in collected) == lost


@given(messages, st.integers(0, 75))
def test_an_incomplete_frame_is_kept_and_counted(sent: bytes, cut: int) -> None:
    """An incomplete frame is neither a frame nor an error, and its number of bytes is known."""
    assembler = FrameAssembler()
    assert assembler.feed(sent[:cut]) == []
    assert assembler.pending_bytes == cut
    assert assembler.feed(sent[cut:]) == [sent[4:]]


def test_a_skipped_frame_is_returned_with_its_bytes_and_the_stream_continues() -> None:
    """The frame after a frame of 10 bytes is read."""
    good = isl.encode(**FIELDS)
    skipped, frame = FrameAssembler().feed(message(10) + good)
    assert isinstance(skipped, MalformedFrame)
    assert not isinstance(skipped, FramingLost)
    assert (skipped.reason, skipped.frame) == ("isl frame: expected 72 bytes, got 10", bytes(10))
    assert frame == good[4:]


def test_an_impossible_length_ends_the_stream_after_the_frames_before_it() -> None:
    """Frames completed in the same call come first, then the loss with its bytes; another call raises it again."""
    good, bad = isl.encode(**FIELDS), struct.pack("<I", 70_000) + b"anything"
    assembler = FrameAssembler()
    frame, lost = assembler.feed(good + bad)
    assert frame == good[4:]
    assert isinstance(lost, FramingLost)
    assert lost.frame == bad
    assert lost.reason == "isl stream: expected a frame length of 72 (at most 65536), got 70000"
    assert assembler.pending_bytes == 0
    with pytest.raises(FramingLost):
        assembler.feed(good)


def test_a_maximum_below_the_frame_size_is_rejected() -> None:
    """Such an assembler could never return a frame."""
    with pytest.raises(ValueError, match=r"^FrameAssembler: max_frame_bytes must be >= 72, got 71$"):
        FrameAssembler(max_frame_bytes=71)
