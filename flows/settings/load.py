"""Reads settings: built-in defaults, then a TOML file, then the environment. Every problem is reported at once, in one line.

The environment wins over the file: ``SDA_INGEST__EVENT_LOG__DIRECTORY=/data/log`` sets ``[event_log] directory``. A list, or
a whole section, is written in JSON: ``SDA_INGEST__RADARS='[{"name": "radar-01", "port": 9201}]'``.

What was read is validated once, as one document: a model that is dumped and validated again would take every default for a
value that was set. ``fields`` knows the models, and finds the setting that was probably meant.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from flows.settings.fields import Location, annotation_at, holds_a_secret, is_section, is_written_in_json, suggestion

Model = TypeVar("Model", bound=BaseModel)
Values: TypeAlias = dict[str, Any]

_SHOWN = 200  # characters of a wrong value in a message
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS = {"path_type": "path", "tuple_type": "list", "list_type": "list"}  # pydantic's own messages name Python's types
_PASSWORD = re.compile(r"//[^/@\s]*@")


class SettingsError(Exception):
    """Invalid settings; ``problems`` has a line for each: the file or variable, the table, the key, and what is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(model: type[Model], file: Path | None, *, prefix: str) -> Model:
    """Defaults, then ``file`` (TOML), then the environment. Raises ``SettingsError`` with every problem."""
    problems: list[str] = []
    from_file: Values = {}
    if file is not None:
        try:
            from_file = _read(file)
        except SettingsError as error:
            problems += error.problems
    variables = {name: text for name, text in os.environ.items() if name.upper().startswith(prefix.upper())}
    environment = _Environment.read(model, variables, prefix)
    problems += environment.problems
    sources = _Sources(model, file, from_file, environment)
    try:
        settings = model.model_validate(_merged(from_file, environment.values))
    except ValidationError as error:
        raise SettingsError(
            [*problems, *(line for each in _causes(error) for line in sources.problems(each))]
        ) from None
    if problems:
        raise SettingsError(problems)
    return settings


def _read(file: Path) -> Values:
    """The content of a TOML file. Raises ``SettingsError``."""
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        why = "no such file"
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        why = f"expected TOML in UTF-8, got the byte 0x{error.object[error.start]:02x} at position {error.start}"
    except tomllib.TOMLDecodeError as error:
        why = f"not valid TOML: {error}"
    except (
        ValueError,
        RecursionError,
    ) as error:  # a null byte in the path, an impossible date; tables nested too deeply
        why = f"cannot be read: {error}"
    raise SettingsError([f"settings file {file}: {why}"])


@dataclass(frozen=True, slots=True)
class _Environment:
    """What variables set.

    Attributes:
        values: The values, as a nested document.
        names: The variable that set the value at each place.
        problems: Variables that set nothing.
    """

    values: Values
    names: dict[Location, str]
    problems: list[str]

    @classmethod
    def read(cls, model: type[BaseModel], variables: Mapping[str, str], prefix: str) -> _Environment:
        values: Values = {}
        names: dict[Location, str] = {}
        problems = []
        # By name, so that the variable of a section comes before those of its settings, which win.
        for name, text in sorted(variables.items()):
            place = tuple(name[len(prefix) :].lower().split("__"))
            annotation = annotation_at(model, place)
            if annotation is None:
                problems.append(f"environment variable {name}: there is no such setting{suggestion(model, place)}")
                continue
            try:
                value: Any = json.loads(text) if is_written_in_json(annotation, text) else text
            except (ValueError, RecursionError) as error:
                shown = "" if holds_a_secret(annotation) else f", got {_shown(text)}"
                problems.append(f"environment variable {name}: expected JSON: {error}{shown}")
                continue
            for part in reversed(place):
                value = {part: value}
            values = _merged(values, value)
            names[place] = name
        return cls(values, names, problems)


def _causes(error: ValidationError) -> list[Any]:
    """The errors without those that only follow: a list that is too short because its entries are invalid."""
    found: list[Any] = list(error.errors(include_url=False))
    return [
        each
        for each in found
        if each["type"] != "too_short"
        or all(other is each or other["loc"][: len(each["loc"])] != each["loc"] for other in found)
    ]


def _merged(lower: Values, upper: Values) -> Values:
    """``lower`` with the values of ``upper``, which wins; tables are merged, lists are not."""
    return {
        **lower,
        **{
            name: _merged(lower[name], value)
            if isinstance(value, dict) and isinstance(lower.get(name), dict)
            else value
            for name, value in upper.items()
        },
    }


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the settings were read, for messages."""

    model: type[BaseModel]
    file: Path | None
    from_file: Values
    environment: _Environment

    def problems(self, details: Any) -> list[str]:
        """One of pydantic's errors: one line, or a line for each line of our own message."""
        location: Location = details["loc"]
        place = (self._origin(location), _place(self.model, location))
        return [
            _PASSWORD.sub("//…@", ": ".join(part for part in (*place, complaint) if part))
            for complaint in self._complaint(details, location).split("\n")
        ]

    def _complaint(self, details: Any, location: Location) -> str:
        match details["type"]:
            case "extra_forbidden":
                return f"there is no such setting{suggestion(self.model, location)}"
            case "missing":
                return "is missing, and has no default"
            case "value_error":  # our own message: it has the value
                return str(details["msg"]).removeprefix("Value error, ")
            case "model_type" | "model_attributes_type" | "path_type" | "tuple_type" | "list_type" as kind:
                expected = f"a {_KINDS.get(kind, 'table')}"
                entry = annotation_at(self.model, (*location, 0))
                if kind in {"tuple_type", "list_type"} and isinstance(entry, type) and is_section(entry):
                    expected = f"a list of tables, [[{'.'.join(map(str, location))}]]"
                return f"expected {expected}, got {_kind_or_value(details['input'])}"
            case _:
                annotation = annotation_at(self.model, location)
                shown = (
                    "" if annotation is not None and holds_a_secret(annotation) else f", got {_shown(details['input'])}"
                )
                return f"{details['msg']}{shown}"

    def _origin(self, location: Location) -> str:
        """The variables and the file that set what is at ``location``, or a part of it."""
        names = self.environment.names
        for length in range(len(location), 0, -1):
            if (name := names.get(location[:length])) is not None:
                return f"environment variable {name}"
        beneath = [
            f"environment variable {name}" for place, name in names.items() if place[: len(location)] == location
        ]
        in_file = self.file is not None and (not beneath or _has(self.from_file, location))
        return ", ".join([*([str(self.file)] if in_file else []), *beneath]) or "settings"


def _has(values: Any, location: Location) -> bool:
    for part in location:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return bool(values)


def _place(model: type[BaseModel], location: Location) -> str:
    """``[table] key``, as in the file; the second entry of a list is ``#2``."""
    parts = [f" #{part + 1}" if isinstance(part, int) else f".{_quoted(part)}" for part in location]
    annotation = annotation_at(model, location)
    in_table = parts if annotation is not None and is_section(annotation) else parts[:-1]
    key = parts[len(in_table) :]
    while in_table and key and key[0].startswith(" "):  # an entry of a list of values belongs to its key
        key.insert(0, in_table.pop())
    table = f"[{''.join(in_table).lstrip('.')}]" if in_table else ""
    return " ".join(part for part in (table, "".join(key).lstrip(".")) if part)


def _quoted(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _kind_or_value(value: Any) -> str:
    """A value as text. Of a table or a list only the kind: a setting in it may be a secret."""
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else _shown(value)


def _shown(value: Any) -> str:
    text = _PASSWORD.sub("//…@", repr(value))  # before it is cut
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
