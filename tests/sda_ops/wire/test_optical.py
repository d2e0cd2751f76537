"""Pages of the optical archive: entries, ids, bad entries and bad pages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.observation import Observation, OpticalTarget, Uncertainty
from sda_ops.wire.malformed import MalformedFrame
from sda_ops.wire.optical import OpticalEntry, decode_page, encode_page

INGEST = 1_790_000_000_000_000_001
ENTRY: dict[str, Any] = {
    "obs_id": "o-17",
    "timestamp_ns": 1_790_000_000_000_000_000,
    "ra_rad": 1.25,
    "dec_rad": -0.5,
    "sigma_arcsec": 0.5,
    "site_id": 12,
}

names = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1))
numbers = st.floats(allow_nan=False, allow_infinity=False)
entries = st.builds(OpticalEntry, names, st.integers(-(2**63), 2**63 - 1), numbers, numbers, numbers, names)


def page(*values: object) -> bytes:
    return json.dumps(list(values)).encode()


def decode_one(value: object) -> Observation:
    (observation,), malformed = decode_page(page(value), ingest_timestamp=INGEST)
    assert not malformed
    return observation


def test_an_entry_becomes_an_observation_field_by_field() -> None:
    """Each key is in the record's field of the same meaning, the sigma in radians."""
    observation = decode_one(ENTRY)
    assert observation == Observation(
        observation.observation_id,
        "optical-12",
        "optical",
        1_790_000_000_000_000_000,
        INGEST,
        OpticalTarget(1.25, -0.5),
        Uncertainty(sigma_angle_rad=math.radians(0.5 / 3600)),
        "o-17",
    )


@given(st.lists(entries, max_size=8))
def test_every_entry_is_unchanged_by_encoding_and_decoding(sent: list[OpticalEntry]) -> None:
    """The decoder reads the encoder's output, in order, without a malformed entry."""
    observations, malformed = decode_page(encode_page(sent), ingest_timestamp=INGEST)
    assert malformed == []
    assert [(o.source_id, o.track_id, o.sensor_timestamp, o.target) for o in observations] == [
        (f"optical-{e.site_id}", str(e.obs_id), e.timestamp_ns, OpticalTarget(e.ra_rad, e.dec_rad)) for e in sent
    ]


def test_an_empty_page_is_a_good_page() -> None:
    """An archive without new observations is not an error."""
    assert decode_page(b"[]", ingest_timestamp=INGEST) == ([], [])


def test_the_id_does_not_depend_on_white_space_key_order_or_unknown_keys() -> None:
    """The archive may change its JSON writer without making every observation new."""
    reordered = json.dumps([dict(reversed(ENTRY.items())) | {"filter": "V"}], indent=3).encode()
    (observation,), _ = decode_page(reordered, ingest_timestamp=INGEST + 1)
    assert observation.observation_id == decode_one(ENTRY).observation_id


@pytest.mark.parametrize(
    "change",
    [
        {"obs_id": "o-18"},
        {"timestamp_ns": 1_790_000_000_000_000_001},
        {"ra_rad": 1.26},
        {"dec_rad": -0.4},
        {"sigma_arcsec": 0.6},
        {"site_id": 13},
    ],
)
def test_every_value_is_part_of_the_id(change: dict[str, Any]) -> None:
    """Two entries that differ in one value are two observations."""
    assert decode_one(ENTRY | change).observation_id != decode_one(ENTRY).observation_id


def test_the_border_between_names_is_part_of_the_id() -> None:
    """Observation `a1` of site `2` is not observation `a` of site `12`."""
    one, other = ({"obs_id": "a1", "site_id": "2"}, {"obs_id": "a", "site_id": "12"})
    assert decode_one(ENTRY | one).observation_id != decode_one(ENTRY | other).observation_id


def test_a_name_may_be_a_number_or_a_text() -> None:
    """`17` and `"17"` are the same name, in the record and in the id."""
    assert decode_one(ENTRY | {"obs_id": 17, "site_id": "12"}) == decode_one(ENTRY | {"obs_id": "17", "site_id": 12})


BAD_ENTRIES: list[tuple[object, str]] = [
    ({name: value for name, value in ENTRY.items() if name != "dec_rad"}, "missing required field `dec_rad`"),
    (ENTRY | {"ra_rad": "east"}, "Expected `float`, got `str` - at `$.ra_rad`"),
    (ENTRY | {"ra_rad": None}, "Expected `float`, got `null`"),
    (ENTRY | {"timestamp_ns": 1.5}, "Expected `int`, got `float`"),
    (ENTRY | {"timestamp_ns": 2**63}, "Expected `int` <= 9223372036854775807"),
    (ENTRY | {"obs_id": "\ud800"}, "surrogates not allowed"),
    (ENTRY | {"site_id": ["12"]}, "at `$.site_id`"),
    (17, "Expected `object`, got `int`"),
    (None, "Expected `object`, got `null`"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_ENTRIES)
def test_a_bad_entry_costs_only_itself(bad: object, why: str) -> None:
    """The entries around it are read, and it is returned with its place, the reason and its own JSON."""
    after = ENTRY | {"obs_id": "after"}
    observations, (malformed,) = decode_page(page(ENTRY, bad, after), ingest_timestamp=INGEST)
    assert observations == [decode_one(ENTRY), decode_one(after)]
    assert malformed.reason.startswith("optical entry 1: ")
    assert why in malformed.reason
    assert json.loads(malformed.frame) == bad


def test_numbers_that_are_not_finite_are_left_to_validate() -> None:
    """The NaN of some JSON writers costs neither the page nor the entry."""
    observations, malformed = decode_page(page(ENTRY, ENTRY | {"ra_rad": math.nan}), ingest_timestamp=INGEST)
    assert malformed == []
    assert isinstance(observations[1].target, OpticalTarget)
    assert math.isnan(observations[1].target.right_ascension_rad)


BAD_PAGES: list[tuple[bytes, str]] = [
    (b"", "expected a JSON array, got 0 bytes"),
    (b"<html>", "expected a JSON array, got 6 bytes"),
    (b'[{"obs_id": "torn', "expected a JSON array, got 17 bytes"),
    (b"\xff\xfe\xfd[]", "expected a JSON array, got 5 bytes"),
    (b'{"error": "down"}', "expected a JSON array, got a JSON dict"),
    (b"null", "expected a JSON array, got a JSON NoneType"),
    (b"[" * 100_000, "expected a JSON array, got 100000 bytes"),
]


@pytest.mark.parametrize(("body", "why"), BAD_PAGES, ids=[str(body[:8]) for body, _ in BAD_PAGES])
def test_a_body_that_is_not_an_array_is_malformed_as_a_whole(body: bytes, why: str) -> None:
    """The error has the type or size of the body, and its bytes."""
    with pytest.raises(MalformedFrame, match="optical page: ") as raised:
        decode_page(body, ingest_timestamp=INGEST)
    assert why in raised.value.reason
    assert raised.value.frame == body
