"""Assessed conjunctions for tests and figures of what is made of them: CelesTrak's SOCRATES, and pairs near given times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.reader import read_catalog
from sda_ops.screening.approaches import Approaches, Screening
from sda_ops.screening.assessment.assess import Conjunctions, assess
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.output.messages import messages_of
from sda_ops.wire.cdm import ConjunctionMessage
from tests.helpers.support import SDA_DATA_DIR
from tests.sda_ops.screening.made_up import made_up_screening
from tests.sda_ops.screening.orbits import EPOCH_NS

SOCRATES = SDA_DATA_DIR / "socrates_2026-03-09"
CREATED_NS = EPOCH_NS


class AssessedScene(NamedTuple):
    """Assessed conjunctions, and how they were found."""

    objects: ScreenedObjects
    conjunctions: Conjunctions
    screening: Screening

    def messages(self, indices: Sequence[int] | None = None, **options: Any) -> list[ConjunctionMessage]:
        chosen = range(len(self.conjunctions)) if indices is None else indices
        given = {"originator": "SDA", "creation_date_ns": CREATED_NS, **options}
        rows = np.array(chosen, dtype=np.intp)
        return list(messages_of(self.objects, self.conjunctions, rows, screening=self.screening, **given))


def states(objects: ScreenedObjects, rows: Rows, times_ns: Nanoseconds) -> tuple[Floats, Floats]:
    """In TEME: of object i at time i."""
    exact = exact_states(objects.satrecs, rows, times_ns)
    return exact.r_teme_m, exact.v_teme_m_s


def assessed_scene(
    objects: ScreenedObjects, first: Rows, second: Rows, near_ns: Nanoseconds, assumptions: Assumptions | None = None
) -> AssessedScene:
    """The minima of the distance near the given times."""
    tca_ns = near_ns
    for _ in range(4):
        (r_1, v_1), (r_2, v_2) = (states(objects, rows, tca_ns) for rows in (first, second))
        position_m, velocity_m_s = r_2 - r_1, v_2 - v_1
        late_s = (position_m * velocity_m_s).sum(axis=1) / (velocity_m_s**2).sum(axis=1)
        tca_ns = tca_ns - np.rint(late_s * NS_PER_S).astype(np.int64)
    approaches = Approaches(
        first=first,
        second=second,
        tca_ns=tca_ns,
        miss_m=np.linalg.norm(position_m, axis=1),
        relative_speed_m_s=np.linalg.norm(velocity_m_s, axis=1),
    )
    conjunctions = assess(objects, approaches, assumptions=assumptions)
    start_ns, end_ns = int(tca_ns.min()) - NS_PER_S, int(tca_ns.max()) + NS_PER_S
    screening = replace(made_up_screening(start_ns, end_ns), miss_distance_m=5_000.0, approaches=approaches)
    return AssessedScene(objects, conjunctions, screening)


def socrates_scene() -> AssessedScene:
    """The 20 conjunctions of the highest probability, with the element sets from which CelesTrak computed them."""
    rows = json.loads((SOCRATES / "socrates_top20_maxProb.json").read_text(encoding="utf-8"))["conjunctions"]
    sets: dict[int, ElementSet] = {}
    for row in rows:
        for each in read_catalog((SOCRATES / "pairs_gp" / row["gp_file"]).with_suffix(".csv")).element_sets:
            sets[each.catalog_number] = each
    place = {number: index for index, number in enumerate(sets)}
    pairs = np.array([sorted((place[row["obj1_norad"]], place[row["obj2_norad"]])) for row in rows])
    near_ns = np.array([int(datetime.fromisoformat(row["tca"]).timestamp() * 1e3) * 10**6 for row in rows])
    return assessed_scene(ScreenedObjects.of(list(sets.values())), pairs[:, 0], pairs[:, 1], near_ns)
