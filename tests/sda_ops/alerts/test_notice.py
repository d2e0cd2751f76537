"""An alert as a notice for people: what its event, its labels and its page have."""

from __future__ import annotations

from typing import Any

import msgspec

from sda_ops.alerts.notice import ALERT_EVENT, alert_notice
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence
from tests.scenes.risks import EPOCH_NS, START_NS, S, screened


def alert(
    revision: int = 0, *, evidence: ObjectEvidence | None = None, status: str = "provisional", **fields: Any
) -> Alert:
    """Revision ``revision`` of one conjunction."""
    estimate = msgspec.structs.replace(
        screened((25_544, 49_863), miss_m=321.4),
        **{"name_first": "ISS (ZARYA)", "name_second": "COSMOS 1408 DEB", **fields},
    )
    first = ObjectEvidence(catalog_number=25_544, epoch_timestamp=EPOCH_NS) if evidence is None else evidence
    return Alert(
        conjunction_id=estimate.conjunction_id,
        revision=revision,
        severity="high",
        recorded_timestamp=START_NS + S // 2,
        risk=ConjunctionRisk(
            estimate=estimate,
            status=status,  # type: ignore[arg-type] # a status
            cause="observed",
            evidence=(first, ObjectEvidence(catalog_number=49_863, epoch_timestamp=EPOCH_NS)),
            evidence_timestamp=START_NS,
        ),
    )


def test_the_event_names_the_conjunction_and_can_be_filtered_by_severity_and_status() -> None:
    """The labels are on the resource: automations match those, and not the payload."""
    notice = alert_notice(alert(2, status="final"))
    assert notice.event == ALERT_EVENT == "conjunction.alert"
    assert notice.resource == f"conjunction.{alert().conjunction_id}"
    assert notice.labels == {"conjunction.severity": "high", "conjunction.status": "final"}
    assert notice.payload["revision"] == 2
    assert notice.payload["miss_m"] == 321.4
    assert notice.payload["tca"] == "2026-01-01 14:00:00.000 UTC"
    assert notice.title == (
        "high: ISS (ZARYA) (25544) and COSMOS 1408 DEB (49863), 321 m at 2026-01-01 14:00:00.000 UTC, revision 2, final"
    )


def test_revisions_are_versions_of_one_artifact_and_notices_of_their_own() -> None:
    """The key of a notice also has the time of the record: a new outbox reports its own revision 0."""
    first, second = alert_notice(alert(0)), alert_notice(alert(1))
    assert first.artifact == second.artifact == f"alert-{str(alert().conjunction_id)[:13]}"
    assert first.key != second.key
    again = msgspec.structs.replace(alert(0), recorded_timestamp=START_NS + S)
    assert alert_notice(again).key != first.key
    assert alert_notice(alert(0)) == first


def test_the_page_has_objects_approach_probability_and_evidence() -> None:
    """In two tables, with the limit of the probability where there are no covariances."""
    evidence = ObjectEvidence(
        catalog_number=25_544,
        epoch_timestamp=EPOCH_NS,
        observations=12,
        sensors=("optical-1", "radar-2"),
        first_observation_timestamp=START_NS - 60 * S,
        last_observation_timestamp=START_NS - 250_000_000,
    )
    lines = alert_notice(alert(3, evidence=evidence)).markdown.splitlines()
    assert lines[0] == "# High: ISS (ZARYA) and COSMOS 1408 DEB"
    assert "| status | provisional: more evidence may follow |" in lines
    assert "| miss distance | 321 m (radial 321 m, in-track 0 m, cross-track 0 m) |" in lines
    assert "| relative speed | 12.00 km/s |" in lines
    assert "| probability of collision | at most 1.0e-05 (no covariances) |" in lines
    assert "| revision | 3, recorded 2026-01-01 12:00:00.500 UTC |" in lines
    assert (
        "| 25544 | ISS (ZARYA) | 2026-01-01 06:00:00.000 UTC | 12 | optical-1, radar-2 | 2026-01-01 11:59:59.750 UTC |"
        in lines
    )
    assert "| 49863 | COSMOS 1408 DEB | 2026-01-01 06:00:00.000 UTC | 0 | - | - |" in lines
    with_covariances = alert_notice(alert(probability=2.5e-6)).markdown
    assert "| probability of collision | 2.5e-06 (at most 1.0e-05) |" in with_covariances


def test_a_retraction_says_why() -> None:
    """An object that left the catalogue is no evidence against a collision."""
    page = alert_notice(alert(status="retracted", reason="left_catalog")).markdown
    assert "| status | retracted: an object is not in the catalogue any more |" in page.splitlines()


def test_a_name_from_the_catalogue_cannot_change_the_page() -> None:
    """Lines, cells and markup in a name stay text; an object without a name has its number."""
    page = alert_notice(alert(name_first="A | B\n# <b>*x*", name_second="")).markdown
    assert page.splitlines()[0] == r"# High: A \| B # \<b\>\*x\* and 49863"
    assert len(page.splitlines()) == len(alert_notice(alert()).markdown.splitlines())
    assert r"| 25544 | A \| B # \<b\>\*x\* | 2026-01-01 06:00:00.000 UTC | 0 | - | - |" in page.splitlines()
