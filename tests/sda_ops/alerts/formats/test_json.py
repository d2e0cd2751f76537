"""An alert as JSON: every one fits the published schema, which describes every field, and the documented example is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sda_ops.alerts.formats.json import SCHEMA_VERSION, alert_json
from sda_ops.alerts.outbox.rules import severity
from sda_ops.records.alert import Alert
from tests.helpers.support import ROOT
from tests.sda_ops.alerts.risks import T0, S, risk

SCHEMA = json.loads((ROOT / f"docs/schemas/conjunction-alert-{SCHEMA_VERSION}.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
STATES = {f"{one}_{name}": 7e6 for one in ("first", "second") for name in ("x_m", "y_m", "z_m")} | {
    f"{one}_{name}": -7_500.25 for one in ("first", "second") for name in ("vx_m_s", "vy_m_s", "vz_m_s")
}


def alert(revision: int = 0, *, complete_until_ns: int | None = None, **of_risk: Any) -> Alert:
    what = msgspec.structs.replace(risk(**of_risk), complete_until_timestamp=complete_until_ns)
    return Alert(
        conjunction_id=what.conjunction_id,
        revision=revision,
        severity=severity(what.estimate),
        recorded_timestamp=T0 + 123_456_789,
        risk=what,
    )


def closed(schema: Any) -> Any:
    """The schema, with every field that it does not describe forbidden."""
    if isinstance(schema, dict):
        inner = {name: closed(part) for name, part in schema.items()}
        return inner | {"additionalProperties": False} if "properties" in schema else inner
    return [closed(each) for each in schema] if isinstance(schema, list) else schema


CLOSED = Draft202012Validator(closed(SCHEMA), format_checker=Draft202012Validator.FORMAT_CHECKER)

times = st.integers(0, 4_102_444_800 * S - 1)
metres = st.floats(-1e9, 1e9)
texts = st.text(max_size=20)
alerts = st.builds(
    alert,
    revision=st.integers(0, 10**6),
    complete_until_ns=st.none() | times,
    status=st.sampled_from(["provisional", "final", "retracted"]),
    cause=st.sampled_from(["screened", "observed", "settled", "amended", "withdrawn", "recovered"]),
    observations=st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 64, 70])),
    evidence_ns=times,
    estimate=st.integers(1, 10**6),
    tca_timestamp=times,
    miss_m=st.floats(0, 1e9),
    miss_radial_m=metres,
    max_probability=st.floats(0, 1),
    probability=st.none() | st.floats(0, 1),
    dilution_m=st.none() | st.floats(0, 1e9),
    name_first=texts,
    designator_second=texts,
    fleet_first=st.none() | texts,
    age_first_s=metres,
    same_fleet=st.booleans(),
    reason=st.sampled_from([None, "moved_away", "left_catalog"]),
    first_x_m=st.none() | metres,
)


@given(alerts)
def test_every_alert_fits_the_schema_and_has_no_field_that_it_does_not_describe(each: Alert) -> None:
    content = alert_json(each)
    document = json.loads(content)
    CLOSED.validate(document)
    assert (document["id"], document["revision"]) == (str(each.conjunction_id), each.revision)
    assert b"\n" not in content


def test_the_schema_is_valid_and_describes_each_field() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    def fields(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(schema, dict):
            yield from schema.get("properties", {}).items()
            for part in schema.values():
                yield from fields(part)

    described = dict(fields(SCHEMA))
    assert len(described) > 40
    for name, field in described.items():
        assert field["description"].endswith("."), name
        if name.endswith("_m"):
            assert "metres" in json.dumps(field), name


def test_a_field_of_the_future_is_accepted_and_a_missing_one_or_another_version_is_not() -> None:
    """This is the rule of version 1: fields may be added."""
    document = json.loads(alert_json(alert()))
    VALIDATOR.validate(document | {"new": 1})
    for broken in ({**document, "schema_version": 2}, {k: v for k, v in document.items() if k != "severity"}):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(broken)


def test_the_content_is_that_of_the_alert() -> None:
    """Figures by field; times with nanoseconds; an empty name is null."""
    document = json.loads(
        alert_json(
            alert(
                2,
                observations=(2, 0),
                complete_until_ns=T0,
                designator_first="58002B",
                probability=2.5e-7,
                **STATES,
            )
        )
    )
    # T0 is 2026-02-25 06:13:20.
    assert document["recorded_at"] == "2026-02-25T06:13:20.123456789Z"
    assert document["complete_until"] == "2026-02-25T06:13:20.000000000Z"
    assert document["conjunction"]["tca"] == "2026-02-25T12:13:20.000000000Z"
    assert (document["conjunction"]["miss_distance_m"], document["conjunction"]["probability"]) == (812.5, 2.5e-7)
    first, second = document["objects"]
    assert (first["catalog_number"], first["name"], first["designator"]) == (5, "VANGUARD 1", "58002B")
    assert (second["catalog_number"], second["name"], second["fleet"]) == (9, None, "Starlink")
    assert first["state"] == {"frame": "TEME", "position_m": [7e6] * 3, "velocity_m_s": [-7_500.25] * 3}
    assert first["observations"]["count"] == len(first["observations"]["ids"]) == 2
    assert first["observations"]["last_at"] == "2026-02-25T06:13:21.000000000Z"
    assert second["observations"]["first_at"] is None
    assert UUID(document["id"]) == risk().conjunction_id


def test_the_same_alert_is_the_same_bytes() -> None:
    assert alert_json(alert(observations=(3, 1))) == alert_json(alert(observations=(3, 1)))


def test_the_documented_example_is_an_alert_as_it_is_sent() -> None:
    """The page has it with line breaks."""
    text = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    sent = alert(
        1,
        estimate=2,
        observations=(2, 0),
        complete_until_ns=T0,
        cause="settled",
        status="final",
        designator_first="58002B",
        **STATES,
    )
    CLOSED.validate(json.loads(example))
    assert json.loads(example) == json.loads(alert_json(sent))


def test_every_number_of_an_estimate_is_the_field_of_its_name() -> None:
    """Each number is another one, so that none can be in the place of another."""
    axes = ("x_m", "y_m", "z_m", "vx_m_s", "vy_m_s", "vz_m_s")
    states = [f"{one}_{axis}" for one in ("first", "second") for axis in axes]
    of_conjunction = ("miss_radial_m", "miss_in_track_m", "miss_cross_track_m", "relative_speed_m_s", "dilution_m")
    of_objects = [
        f"{name}_{one}_{unit}" for one in ("first", "second") for name, unit in (("age", "s"), ("radius", "m"))
    ]
    number: dict[str, Any] = {
        name: float(at) for at, name in enumerate([*states, *of_conjunction, *of_objects], start=1)
    }
    body = json.loads(alert_json(alert(**number, probability=0.25, max_probability=0.5)))
    assert [body["conjunction"][name] for name in of_conjunction] == [number[name] for name in of_conjunction]
    assert (body["conjunction"]["probability"], body["conjunction"]["max_probability"]) == (0.25, 0.5)
    for one, said in zip(("first", "second"), body["objects"], strict=True):
        assert said["state"]["position_m"] == [number[f"{one}_{axis}"] for axis in axes[:3]]
        assert said["state"]["velocity_m_s"] == [number[f"{one}_{axis}"] for axis in axes[3:]]
        assert (said["age_s"], said["assumed_radius_m"]) == (number[f"age_{one}_s"], number[f"radius_{one}_m"])
