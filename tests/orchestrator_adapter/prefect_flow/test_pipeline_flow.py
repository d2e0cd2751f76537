"""The flow of a compiled pipeline: its parameter, what it says of an invalid one, and its retries."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cloudpickle  # type: ignore[import-untyped] # Prefect needs it; it has no types
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_FLOWS_DEFAULT_RETRIES, temporary_settings
from pydantic import BaseModel, Field, HttpUrl, SecretStr, model_validator

from orchestrator_adapter import OperatorGraph
from orchestrator_adapter.prefect_flow import compile_flow
from orchestrator_adapter.prefect_flow.pipeline_flow import PipelineFlow
from orchestrator_adapter.process import Pipeline


class Archive(BaseModel):
    """A section with a required field."""

    url: HttpUrl
    token: SecretStr = SecretStr("")
    every_s: float = Field(1.0, gt=0)


class Required(BaseModel):
    """Settings that have no default."""

    archive: Archive
    name: str


class Optional(BaseModel):
    """Settings that have defaults."""

    every_s: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _short(self) -> Optional:
        if self.every_s > 60:
            raise ValueError(f"every_s must be <= 60, got {self.every_s:g}")
        return self


class Invalid(BaseModel):
    """Settings whose defaults are wrong."""

    every_s: float = 100.0

    @model_validator(mode="after")
    def _short(self) -> Invalid:
        raise ValueError("every_s must be <= 60")


def no_pipeline(_: BaseModel) -> Pipeline:
    return Pipeline(OperatorGraph("never"))


def compiled(model: type[BaseModel], **options: Any) -> PipelineFlow:
    flow = compile_flow("archive", model, no_pipeline, description="Any.", **options)
    assert isinstance(flow, PipelineFlow)
    return flow


def test_a_model_with_a_required_field_makes_the_parameter_required() -> None:
    """The form in the UI demands it; a model without one has its defaults in the form."""
    assert compiled(Required).parameters.required == ["settings"]
    assert not compiled(Optional).parameters.required
    assert compiled(Optional).parameters.properties["settings"]["default"] == {"every_s": 1.0}


def test_defaults_that_are_not_valid_are_an_error_in_one_line() -> None:
    """It names the flow, the model and the problem."""
    with pytest.raises(ValueError, match="defaults") as raised:
        compiled(Invalid)
    assert str(raised.value) == (
        "flow 'archive': the defaults of its settings are not valid; correct them, or make the fields required: "
        "Invalid: every_s must be <= 60"
    )


def test_valid_parameters_become_the_model() -> None:
    """From JSON, as the API has them, and as a model, which stays as it is."""
    given = {"archive": {"url": "https://archive.example/", "every_s": 2}, "name": "a"}
    validated = compiled(Required).validate_parameters({"settings": given})["settings"]
    assert isinstance(validated, Required)
    assert compiled(Required).validate_parameters({"settings": validated})["settings"] is validated
    assert compiled(Optional).validate_parameters({}) == {"settings": Optional()}


@pytest.mark.parametrize(
    ("model", "parameters", "expected"),
    [
        (Required, {}, "settings.archive: Field required; settings.name: Field required"),
        (Optional, {"settings": {"every_s": -1}}, "settings.every_s: Input should be greater than 0, got -1"),
        (Optional, {"settings": {"every_s": 61}}, "settings: every_s must be <= 60, got 61"),
        (Optional, {"sets": {}, "settings": {}}, "there is no parameter sets; the only one is 'settings'"),
    ],
)
def test_every_problem_of_invalid_parameters_is_in_one_line(
    model: type[BaseModel], parameters: dict[str, Any], expected: str
) -> None:
    """Where it is, and what was expected."""
    with pytest.raises(ParameterTypeError) as raised:
        compiled(model).validate_parameters(parameters)
    assert str(raised.value) == expected


def test_no_text_that_was_given_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """A value at the wrong place may be a secret; nothing is logged."""
    given = {"archive": {"url": "ftp://me:hunter2@archive", "token": 5, "every_s": "hunter2"}, "name": ["hunter2"]}
    with pytest.raises(ParameterTypeError) as raised:
        compiled(Required).validate_parameters({"settings": given})
    assert str(raised.value).count(";") == 3
    assert "hunter2" not in str(raised.value) + caplog.text


def test_a_flow_with_other_options_validates_in_the_same_way() -> None:
    """``with_options`` keeps the settings model."""
    flow = compiled(Optional).with_options(name="other", retries=3)
    assert (flow.name, flow.retries) == ("other", 3)
    with pytest.raises(ParameterTypeError, match=r"^settings\.every_s: Input should be greater than 0, got 0$"):
        flow.validate_parameters({"settings": {"every_s": 0}})


def test_a_flow_has_no_retries_unless_it_is_compiled_with_some() -> None:
    """Also if Prefect's settings have a default of their own."""
    with temporary_settings({PREFECT_FLOWS_DEFAULT_RETRIES: 2}):
        assert compiled(Optional).retries == 0
        flow = compiled(Optional, retries=1, retry_delay=timedelta(seconds=3))
    assert (flow.retries, flow.retry_delay_seconds) == (1, 3.0)


def test_a_flow_can_be_pickled() -> None:
    """``flow.serve()`` starts each run in a process that receives the flow by ``cloudpickle``: no global of it may resist that."""
    flow = compile_flow("archive", Optional, no_pipeline, description="Any.")
    copy = cloudpickle.loads(cloudpickle.dumps(flow))
    assert copy.name == "archive"
    assert copy.parameters == flow.parameters
