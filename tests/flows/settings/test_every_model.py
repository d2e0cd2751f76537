"""Laws that hold for every settings model, with generated values for all of its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flows.commands.running import UNUSABLE
from flows.pipelines import FUSION, INGEST, PipelineKind
from flows.settings.addresses import Address, SchedulerAddress, SigningSecret
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.settings.sections import Section

ADDRESSES = ("http://a.example/x?y=z", "https://b.example:8443/")


def models(model: type[BaseModel] = Section) -> list[type[BaseModel]]:
    """All settings models."""
    return [found for each in model.__subclasses__() for found in (each, *models(each))]


def documents(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """What a file could set: required fields, and any of the others, each with a value that its own bounds allow."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in model.model_fields.items():
        (required if field.is_required() else optional)[name] = values(field.annotation, field)
    return st.fixed_dictionaries(required, optional=optional)


def values(annotation: Any, field: FieldInfo | None = None) -> st.SearchStrategy[Any]:
    bounds = {type(each): each for each in (field.metadata if field is not None else ())}
    if hasattr(annotation, "__metadata__"):  # Annotated
        return values(annotation.__origin__, FieldInfo.from_annotation(annotation))
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        shortest = bounds.get(annotated_types.MinLen)
        return st.lists(values(get_args(annotation)[0]), min_size=shortest.min_length if shortest else 0, max_size=2)
    if get_origin(annotation) is dict:
        return st.dictionaries(*map(values, get_args(annotation)), max_size=2)
    if get_args(annotation):  # a union
        return st.one_of([values(each, field) for each in get_args(annotation)])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return documents(annotation)
    if annotation in (int, float):
        return numbers(annotation, bounds)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        str: st.sampled_from(["127.0.0.1", "127.0.0.2", "localhost"]),  # names of operators and hosts
        Path: st.sampled_from([Path("a"), Path("/b/c.tle")]),
        Address: st.sampled_from([*ADDRESSES, "secret:archive", "env:ARCHIVE_URL", "file:/run/secrets/archive"]),
        SchedulerAddress: st.sampled_from(["tcp://scheduler:8786", "ray://head:10001", "secret:cluster"]),
        SigningSecret: st.sampled_from(["secret:signing", "env:SIGNING_SECRET", "file:/run/secrets/signing"]),
        type(None): st.none(),
    }
    return plain.get(annotation, st.none())  # other types need a file or a secret; they are optional


def numbers(kind: Callable[..., Any], bounds: dict[type, Any]) -> st.SearchStrategy[Any]:
    low, high = range_of(kind, bounds)
    if kind is int:
        return st.integers(low, high)
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def range_of(kind: Callable[..., Any], bounds: dict[type, Any]) -> tuple[Any, Any]:
    low = max([b.ge for t, b in bounds.items() if t is annotated_types.Ge], default=None)
    high = min([b.le for t, b in bounds.items() if t is annotated_types.Le], default=None)
    if annotated_types.Gt in bounds:
        low = bounds[annotated_types.Gt].gt + (1 if kind is int else 1e-6)
    if annotated_types.Lt in bounds:
        high = bounds[annotated_types.Lt].lt - 1e-6
    return low, high


def extremes(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """For each number its least and its greatest value, as a document that sets nothing else."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if kind in (int, float):
            values_of_field = range_of(kind, {type(each): each for each in field.metadata})
            yield from ({name: value} for value in values_of_field if value is not None)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ({name: document} for document in extremes(kind))


def drawn(model: type[BaseModel], data: st.DataObject) -> Any:
    """Valid settings. What breaks a rule about several fields is not used."""
    try:
        return model.model_validate(data.draw(documents(model)))
    except ValidationError:
        reject()


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_a_dump_of_valid_settings_is_valid_and_means_the_same(model: type[BaseModel], data: st.DataObject) -> None:
    """Prefect stores settings as JSON with all defaults, and validates them again when the run starts."""
    valid = drawn(model, data)
    assert model.model_validate(valid.model_dump()) == valid
    assert model.model_validate_json(valid.model_dump_json()) == valid
    assert model.model_validate(valid.model_dump(exclude_unset=True)) == valid


@pytest.mark.parametrize(
    ("kind", "model"), [(INGEST, IngestSettings), (FUSION, FusionSettings)], ids=lambda each: getattr(each, "name", "")
)
@settings(max_examples=15)
@given(data=st.data())
def test_valid_settings_make_a_pipeline_or_problems_that_commands_report(
    kind: PipelineKind, model: type[BaseModel], data: st.DataObject
) -> None:
    """Nothing that the settings accept is rejected later with another exception, which would be a traceback."""
    valid = drawn(model, data)
    with suppress(*UNUSABLE):
        kind.pipeline(valid).graph.validate()


@pytest.mark.parametrize(
    ("kind", "model"), [(INGEST, IngestSettings), (FUSION, FusionSettings)], ids=lambda each: getattr(each, "name", "")
)
def test_the_least_and_the_greatest_value_of_each_number_make_a_pipeline(
    kind: PipelineKind, model: type[BaseModel]
) -> None:
    """Each by itself, with defaults for the rest; unless a rule about several fields rejects it."""
    documents_tried = list(extremes(model))
    assert len(documents_tried) > 50
    for document in documents_tried:
        with suppress(ValidationError):
            settings_tried = model.model_validate(document)
            with suppress(*UNUSABLE):
                kind.pipeline(settings_tried).graph.validate()
