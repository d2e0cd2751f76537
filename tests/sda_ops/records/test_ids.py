"""Observation ids: their definition, and batches."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.ids import observation_id, observation_ids


def test_the_definition_of_the_id_does_not_change() -> None:
    """Another definition would change this id, and with it the key of every logged observation."""
    assert observation_id("radar", bytes(range(64))) == UUID("c343fa31-e05a-8141-affc-4099a088f492")


@given(st.binary())
def test_the_same_content_has_the_same_id_every_time(content: bytes) -> None:
    """Two calls with equal bytes give equal ids."""
    assert observation_id("isl", content) == observation_id("isl", bytes(bytearray(content)))


@given(st.binary())
def test_an_id_is_a_version_8_uuid_of_the_rfc_variant(content: bytes) -> None:
    """Tools that read the version and variant bits find those of RFC 9562, section 5.8."""
    made = observation_id("radar", content)
    assert made.version == 8
    assert made.variant == RFC_4122


def test_equal_bytes_of_different_kinds_of_sensor_have_different_ids() -> None:
    """A radar frame and a beacon frame with the same bytes are two observations."""
    assert len({observation_id(kind, b"same") for kind in ("radar", "optical", "isl")}) == 3


def test_one_flipped_bit_gives_another_id() -> None:
    """This holds for each of a frame's 512 bits."""
    frame = int.from_bytes(bytes(range(64)), "big")
    ids = {observation_id("radar", (frame ^ (1 << bit)).to_bytes(64, "big")) for bit in range(512)}
    assert len(ids | {observation_id("radar", bytes(range(64)))}) == 513


@given(st.lists(st.binary(max_size=80), max_size=40))
def test_a_batch_gives_the_same_ids_as_single_calls(contents: list[bytes]) -> None:
    """The fast path agrees with the plain one, in order, including hash and text."""
    batch = observation_ids("optical", contents)
    single = [observation_id("optical", content) for content in contents]
    assert batch == single
    assert [(hash(made), str(made)) for made in batch] == [(hash(UUID(str(made))), str(made)) for made in single]
