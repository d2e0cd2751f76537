"""``PipelineFlow``: a flow whose one parameter is a settings model. It validates the parameter itself.

Prefect's own validation logs every parameter with its value, and pydantic's text, which repeats the values. Here each problem
has one line, and no text that was given as a value is repeated: it may be a secret.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import BaseModel, ValidationError

PARAMETER = "settings"
"""The name of the parameter."""

_USERINFO = re.compile(r"//[^/@\s]*@")


class PipelineFlow(Flow[..., Any]):
    """A flow with the parameter ``settings``."""

    settings_model: type[BaseModel]
    """The type of the parameter."""

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters with the settings as a model. Raises ``ParameterTypeError``, with every problem in one line."""
        if unknown := sorted(parameters.keys() - {PARAMETER}):
            raise ParameterTypeError(f"there is no parameter {', '.join(unknown)}; the only one is {PARAMETER!r}")
        try:
            given = parameters.get(PARAMETER, {})
            return {PARAMETER: self.settings_model.model_validate(given)}
        except ValidationError as error:
            raise ParameterTypeError("; ".join(problems_of(error, PARAMETER))) from None

    def with_options(self, *args: Any, **kwargs: Any) -> PipelineFlow:
        """As ``Flow.with_options``, which makes a plain flow."""
        flow = super().with_options(*args, **kwargs)
        flow.__class__ = PipelineFlow
        assert isinstance(flow, PipelineFlow)
        flow.settings_model = self.settings_model
        return flow


def default_of(settings: type[BaseModel], flow: str) -> Any:
    """The default of the parameter: the model's own defaults; none if a field of the model is required.

    Raises ``ValueError``, in one line, if the defaults are not valid.
    """
    try:
        return settings()
    except ValidationError as error:
        if all(problem["type"] == "missing" for problem in error.errors()):
            return inspect.Parameter.empty
        why = "; ".join(problems_of(error, settings.__name__))
        raise ValueError(
            f"flow {flow!r}: the defaults of its settings are not valid; correct them, or make the fields required: {why}"
        ) from None


def problems_of(error: ValidationError, name: str) -> list[str]:
    """One line for each problem: where it is, below ``name``, and what was expected. Only numbers that were given are shown."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join((name, *map(str, problem["loc"])))
        given = problem["input"]
        shown = f", got {given!r}" if isinstance(given, (int, float)) else ""
        message = " ".join(problem["msg"].removeprefix("Value error, ").split())
        lines.append(f"{where}: {_USERINFO.sub('//***@', message)}{shown}")
    return lines
