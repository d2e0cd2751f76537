"""Reads settings: built-in defaults, then a TOML file, then the environment. Every problem is reported at once.

The environment wins over the file: ``SDA_INGEST__EVENT_LOG__DIRECTORY=/data/log`` sets ``[event_log] directory``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

Model = TypeVar("Model", bound=BaseModel)


class SettingsError(Exception):
    """Invalid settings; ``problems`` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(model: type[Model], file: Path | None, *, prefix: str) -> Model:
    """Defaults, then ``file`` (TOML), then the environment. Raises ``SettingsError`` with every problem."""
    if file is not None and not file.is_file():
        raise SettingsError([f"settings file {file}: no such file"])

    class Layered(model, BaseSettings):  # type: ignore[valid-type,misc] # the model is chosen at run time
        model_config = SettingsConfigDict(
            env_prefix=prefix, env_nested_delimiter="__", toml_file=file, extra="forbid", frozen=True
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the interface's signature, as the rest
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, TomlConfigSettingsSource(settings_cls)

    problems = _unknown_variables(model, prefix)
    try:
        layered: BaseModel = Layered()
    except ValidationError as error:
        raise SettingsError([*problems, *map(_problem, error.errors())]) from error
    except (ValueError, OSError) as error:  # invalid or unreadable TOML, a variable that is not valid JSON
        raise SettingsError([*problems, f"settings{f' file {file}' if file else ''}: {error}"]) from error
    if problems:
        raise SettingsError(problems)
    return model.model_validate(layered.model_dump())


def _unknown_variables(model: type[BaseModel], prefix: str) -> list[str]:
    """Variables with the prefix that set nothing. pydantic-settings ignores them, but they are probably mistakes."""
    return [
        f"environment variable {name}: there is no such setting"
        for name in sorted(os.environ)
        if name.upper().startswith(prefix.upper())
        and name[len(prefix) :].split("__")[0].lower() not in model.model_fields
    ]


def _problem(details: Any) -> str:
    if not details["loc"]:  # a rule about several settings: the message names them
        return str(details["msg"])
    where = ".".join(str(part) for part in details["loc"])
    if details["type"] == "value_error":  # our own message: it has the value
        return f"{where}: {str(details['msg']).removeprefix('Value error, ')}"
    return f"{where}: {details['msg']}, got {details['input']!r}"
