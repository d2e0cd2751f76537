"""The fields of settings models, by location: their types, and the field that was probably meant by an unknown name."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr

from flows.settings.addresses import Reference

Location: TypeAlias = tuple[str | int, ...]
"""The names of sections and of the setting, with the index of an entry in a list after the list's name."""


def annotation_at(model: type[BaseModel], location: Location) -> Any:
    """The type at ``location``; ``None`` if there is no such setting."""
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            annotation = next((get_args(each)[0] for each in _members(annotation) if _is_list(each)), None)
        else:
            sections = (each for each in _members(annotation) if is_section(each))
            annotation = next(
                (each.model_fields[part].annotation for each in sections if part in each.model_fields), None
            )
        if annotation is None:
            return None
    return annotation


def is_section(annotation: Any) -> bool:
    """Whether the value is a table of settings."""
    return any(
        isinstance(each, type) and get_origin(each) is None and issubclass(each, BaseModel)
        for each in _members(annotation)
    )


def is_written_in_json(annotation: Any, text: str) -> bool:
    """Whether a variable of this type is JSON: tables, lists, and choices of numbers. Other values are plain text."""
    plain = [each for each in _members(annotation) if _is_plain(each)]
    return not plain or (len(plain) < len(_members(annotation)) and text.startswith(("{", "[")))


def holds_a_secret(annotation: Any) -> bool:
    """Whether the value must not be shown: it, or a setting in it, is a secret, or an address, which may have one."""
    return any(
        each in (SecretStr, SecretBytes)
        or (isinstance(each, type) and get_origin(each) is None and issubclass(each, Reference))
        or (_is_list(each) and holds_a_secret(get_args(each)[0]))
        or (is_section(each) and any(holds_a_secret(field.annotation) for field in each.model_fields.values()))
        for each in _members(annotation)
    )


def suggestion(model: type[BaseModel], location: Location) -> str:
    """What to write instead of the first unknown name in ``location``, as the end of the sentence "there is no such setting"."""
    known = next(n for n in range(len(location)) if annotation_at(model, location[: n + 1]) is None)
    within, name = _members(annotation_at(model, location[:known])), str(location[known])
    if any(_is_list(each) for each in within):
        return "; a list is set as a whole, in JSON"
    sections = [each for each in within if is_section(each)]
    for each in sections:
        if (instead := getattr(each, "removed", {}).get(name)) is not None:
            return f" any more; {instead}"
    names = [field for each in sections for field in each.model_fields]
    if close := get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]}?"
    if elsewhere := [path for path in _paths(model) if path[-1] == name]:
        return f"; did you mean {' or '.join(_written(path) for path in elsewhere[:3])}?"
    return f"; there are {', '.join(names)}" if names else ""


def _written(path: tuple[str, ...]) -> str:
    *table, key = path
    return f"[{'.'.join(table)}] {key}" if table else f"{key}, before the first [table]"


def _paths(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (name,)
        for each in _members(field.annotation):
            for section in get_args(each) if _is_list(each) else (each,):
                if is_section(section):
                    yield from ((name, *path) for path in _paths(section))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple)


def _is_plain(annotation: Any) -> bool:
    """Whether the value is written as it is: numbers, paths, addresses, words."""
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return isinstance(annotation, type) and get_origin(annotation) is None and not is_section(annotation)


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, without ``None``; otherwise the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each) if member is not NoneType]
    return [annotation]
