"""Conjunction Data Messages of assessed conjunctions: states at the closest approach, and what was assumed.

`sda_ops.screening.output.message_builder` says which frame and which covariance they have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from sda_ops.astro.time import Nanoseconds
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.screening.approaches import Screening
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.output.message_builder import (
    US,
    MessageNumbers,
    MessageObject,
    Notation,
    StatedProbability,
    content_of,
    covariance_comments_of,
    identity_of,
    stated_probability,
)
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.passages import AssetScreening
from sda_ops.wire.cdm import ConjunctionMessage, cdm_kvn, cdm_xml

_LINEAR_S = 30.0
"""Entry and exit times are written if they are at most this far from the closest approach: motion is then linear to 0.05 s."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_WRITERS = {"kvn": (cdm_kvn, "cdm"), "xml": (cdm_xml, "xml")}


def messages_of(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    *,
    screening: Screening,
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None = None,
    assets: Rows | None = None,
) -> Iterator[ConjunctionMessage]:
    """A message for each of ``conjunctions[indices]``, in that order. About 0.2 ms of CPU each.

    The same conjunction of the same catalogue and settings has the same ``MESSAGE_ID`` in every run.

    Args:
        objects: The screened objects.
        conjunctions: As `assess` made them.
        indices: Which of them, and in which order.
        screening: The period and the distance that were screened.
        originator: ``ORIGINATOR``, one line of text.
        creation_date_ns: When the messages are made, UTC.
        errors: The uncertainty with which the conjunctions were assessed. ``None``: the default figures.
        assets: Rows of one's own objects: such a one is OBJECT1, whose axes the relative state is in. Without one, the first
            object is.

    Raises ``ValueError`` for an originator that is not one line of text.
    """
    first, second = conjunctions.first[indices], conjunctions.second[indices]
    swapped = np.zeros(len(indices), dtype=np.bool_)
    if assets is not None:
        swapped = np.isin(second, assets) & ~np.isin(first, assets)

    screened = partial(_sphere, screening)
    yield from _messages(objects, conjunctions, indices, swapped, screened, originator, creation_date_ns, errors)


def passage_messages_of(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    *,
    screening: AssetScreening,
    assets: Sequence[Asset],
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None = None,
) -> Iterator[ConjunctionMessage]:
    """A message for each of the passages ``indices`` through the boxes of ``assets``, as `messages_of` makes them.

    ``conjunctions`` are the assessed ``screening.passages.approaches()``, in the order of the passages. OBJECT1 is the asset.
    The entry and exit times are those of the passage; where it is longer than the screened window, they are missing.
    """
    passages = screening.passages
    volumes = {asset.row: asset.volume for asset in assets}
    swapped = conjunctions.first[indices] != passages.asset[indices]

    def screened(n: int, _: MessageNumbers) -> dict[str, Any]:
        index = indices[n]
        volume = volumes[passages.asset[index].item()]
        entry_ns, exit_ns = passages.entry_ns[index].item(), passages.exit_ns[index].item()
        return {
            "screen_from_ns": screening.start_ns,
            "screen_until_ns": screening.end_ns,
            "screen_volume_frame": "RTN",
            "screen_volume_shape": "BOX",
            "screen_volume_m": (volume.radial_m, volume.in_track_m, volume.cross_track_m),
            "screen_entry_ns": entry_ns // US * US if entry_ns > screening.start_ns else None,
            "screen_exit_ns": exit_ns // US * US if exit_ns < screening.end_ns else None,
        }

    yield from _messages(objects, conjunctions, indices, swapped, screened, originator, creation_date_ns, errors)


def message_files(messages: Iterable[ConjunctionMessage], notation: Notation) -> Iterator[tuple[str, str]]:
    """The name and the text (UTF-8) of a file for each message, in order, one at a time.

    The name is the message's id; characters other than letters, digits, ``_`` and ``-`` are ``_``.
    """
    write, suffix = _WRITERS[notation]
    for message in messages:
        yield f"{_UNSAFE.sub('_', message.message_id)[:200]}.{suffix}", write(message)


def _messages(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    swapped: npt.NDArray[np.bool_],
    screened: Callable[[int, MessageNumbers], dict[str, Any]],
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None,
) -> Iterator[ConjunctionMessage]:
    """``screened`` gives the fields of the screened volume of the nth message; ``swapped``: whose second object is OBJECT1."""
    first, second = conjunctions.first[indices], conjunctions.second[indices]
    pair = np.stack((np.where(swapped, second, first), np.where(swapped, first, second)))
    radius_m = np.stack((conjunctions.radius_first_m[indices], conjunctions.radius_second_m[indices]))
    radius_m = np.where(swapped, radius_m[::-1], radius_m)
    epoch_ns = objects.columns.epoch_ns[pair]
    tca_ns = (conjunctions.tca_ns[indices] + US // 2) // US * US
    numbers = _numbers(objects, pair, tca_ns, ElementSetErrors() if errors is None else errors)
    covariance_comments = covariance_comments_of(errors)
    known: dict[int, dict[str, Any]] = {}

    for n, index in enumerate(indices.tolist()):
        for row in pair[:, n].tolist():
            if row not in known:
                number = objects.columns.catalog_number[row].item()
                known[row] = identity_of(number, objects.names[row], objects.designators[row])
        one, other = (
            MessageObject(identity=known[row], epoch_ns=epoch_ns[k, n].item(), radius_m=radius_m[k, n].item())
            for k, row in enumerate(pair[:, n].tolist())
        )
        content = content_of(numbers, n, (one, other), _probability(conjunctions, index), covariance_comments)
        content |= screened(n, numbers)
        yield ConjunctionMessage(
            creation_date_ns=creation_date_ns, originator=originator, message_id=_message_id(content), **content
        )


def _numbers(objects: ScreenedObjects, pair: Rows, tca_ns: Nanoseconds, errors: ElementSetErrors) -> MessageNumbers:
    both, times_ns = pair.ravel(), np.tile(tca_ns, 2)
    shape = (2, len(tca_ns), 3)
    states = exact_states(objects.satrecs, both, times_ns)
    if states.failed.any():
        number = objects.columns.catalog_number[both[states.failed][0]]
        raise ValueError(f"object {number}: SGP4 has no state at the closest approach")
    catalog_errors = CatalogErrors(
        errors, epoch_ns=objects.columns.epoch_ns, mean_motion_rad_s=objects.columns.no_kozai / 60.0
    )
    variances = np.concatenate(catalog_errors.variances(both, times_ns), axis=-1).reshape(2, len(tca_ns), 6)
    return MessageNumbers(tca_ns, states.r_teme_m.reshape(shape), states.v_teme_m_s.reshape(shape), variances)


def _probability(conjunctions: Conjunctions, index: int) -> StatedProbability:
    probability, ratio = float(conjunctions.probability[index]), conjunctions.aspect_ratio[index]
    return stated_probability(
        probability if np.isfinite(probability) else None,
        float(conjunctions.max_probability[index]),
        float(conjunctions.dilution_m[index]),
        f"a covariance with the aspect ratio {ratio:.4g} in the encounter plane",
    )


def _sphere(screening: Screening, n: int, numbers: MessageNumbers) -> dict[str, Any]:
    """The period and the sphere that were screened. Its size is that of the half axes, as in the standard's example.

    In that example the second object is 712 m away along an axis on which the volume's size is 1,000 m.
    """
    tca_ns, miss_m, speed_m_s = numbers.tca_ns[n].item(), numbers.miss_m[n].item(), numbers.speed_m_s[n].item()
    entry_ns, exit_ns = _inside(tca_ns, miss_m, speed_m_s, screening.miss_distance_m)
    return {
        "screen_from_ns": screening.start_ns,
        "screen_until_ns": screening.end_ns,
        "screen_volume_frame": "RTN",
        "screen_volume_shape": "ELLIPSOID",
        "screen_volume_m": (screening.miss_distance_m,) * 3,
        "screen_entry_ns": entry_ns,
        "screen_exit_ns": exit_ns,
    }


def _inside(tca_ns: int, miss_m: float, speed_m_s: float, distance_m: float) -> tuple[int | None, int | None]:
    """When the distance is first and last at most ``distance_m``, to 1 ms; None if the motion until then is not linear."""
    half_m = sqrt(max(distance_m**2 - miss_m**2, 0.0))
    if half_m >= _LINEAR_S * speed_m_s:
        return None, None
    half_ms = round(half_m / speed_m_s * 1_000)
    tca_ms = round(tca_ns / 1_000_000)
    return (tca_ms - half_ms) * 1_000_000, (tca_ms + half_ms) * 1_000_000


def _message_id(content: Mapping[str, Any]) -> str:
    """CSpOC's form: both objects, the time (year, day of the year, time of day), and a number; here from the content."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=content["tca_ns"] // US)
    numbers = [
        (each.position_m, each.velocity_m_s, each.covariance.state, each.comments) for each in content["objects"]
    ]
    rest = [value for name, value in content.items() if name != "objects"]
    serial = xxhash.xxh3_64_intdigest(repr((numbers, rest)).encode()) % 10**14
    one, other = (each.designator.zfill(9) for each in content["objects"])
    return f"{one}_conj_{other}_{moment:%Y%j%H%M%S}_{serial:014}"
