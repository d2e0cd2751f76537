"""``Address``: an address that may need a secret, and how a reference to a secret becomes the address. ``SigningSecret``: a secret.

Settings are stored and shown in clear: in a file, in Prefect's parameters, in the form. So an address with credentials in it is
rejected. Instead, the setting refers to the place of the whole address:

=================  =============================================================================
``secret:NAME``    the Prefect block of type Secret with this name; only in a run on Prefect
``env:NAME``       the environment variable of the process
``file:PATH``      the content of a file, such as ``/run/secrets/archive``
=================  =============================================================================

A ``SigningSecret`` and an ``AccessToken`` are such references always. The reference is resolved in the process that runs the pipeline, when the run begins (``with_secrets``).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from sda_ops.alerts.delivery.signature import signing_key

Model = TypeVar("Model", bound=BaseModel)

_REFERENCES = ("secret:", "env:", "file:")
_REFERENCE = "secret:NAME (a Secret block of Prefect), env:NAME or file:PATH"
_EXPECTED = f"or {_REFERENCE}"
_SECRET_PARAMETERS = frozenset(
    {"token", "access_token", "key", "apikey", "api_key", "api-key", "password", "passwd", "pwd", "secret", "sig"}
    | {"signature", "auth"}
)
_NO_USERINFO = (
    r"^(?![^/?#]*//[^/?#]*@)"  # in the parameters' schema: the server rejects credentials before it stores them
)
_BLOCK_WITHIN_S = 10.0
_TOKEN = re.compile(r"[!-~]{16,}")  # as the control plane checks it
_LEAST_SECRET_BYTES = 24  # Standard Webhooks 1.0.0, "Signature scheme": 192 bits to 512 bits


class SecretUnavailable(OSError):
    """A reference to a secret leads to none. The message has the reference and the reason, and no part of a secret."""


class Reference(str):
    """A text in the settings that may be a reference to the text that is meant."""

    __slots__ = ()

    @property
    def is_reference(self) -> bool:
        """Whether it only says where the text is."""
        return self.startswith(_REFERENCES)

    @classmethod
    def expected(cls, content: str) -> str | None:
        """What a reference must lead to, if ``content`` is not that: without a part of ``content``."""
        raise NotImplementedError

    @classmethod
    def found(cls, content: str) -> str:
        """What replaces the reference."""
        return content

    @classmethod
    def checked(cls, text: str) -> Reference:
        """The reference. Raises ``ValueError`` without repeating what may be a secret."""
        if text.startswith(_REFERENCES):
            if text.partition(":")[2].strip():
                return cls(text)
            raise ValueError(f"expected a name after the colon, got {text!r}")
        raise ValueError(f"settings are stored and shown in clear; put the secret elsewhere, and write {_REFERENCE}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls.checked, core_schema.str_schema())


class Address(Reference):
    """``http://…`` or ``https://…`` without credentials, or a reference to the whole address."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("http", "https")
    """The schemes of an address; empty: any."""

    @classmethod
    def expected(cls, content: str) -> str | None:
        return None if _is_address(content, cls.schemes) else f"the address {_written(cls.schemes)}"

    @classmethod
    def found(cls, content: str) -> str:
        return HiddenText(content)

    @classmethod
    def checked(cls, text: str) -> Reference:
        """``text`` as an address. Raises ``ValueError`` without repeating what may be a secret."""
        if text.startswith(_REFERENCES):
            return super().checked(text)
        if not _is_address(text, cls.schemes):
            got = "" if {"@", "?", "#", "="} & {*text} else f", got {text[:100]!r}"  # only what cannot have a secret
            raise ValueError(f"expected {_written(cls.schemes)}, {_EXPECTED}{got}")
        parts = urlsplit(text)
        found = [name for name, _ in parse_qsl(parts.query) if name.lower() in _SECRET_PARAMETERS]
        if "@" in parts.netloc or found:
            what = "a user or password" if "@" in parts.netloc else f"the parameter {found[0]!r}"
            raise ValueError(
                f"the address has {what}, and settings are stored and shown in clear; put the "
                f"whole address elsewhere, and write {_REFERENCE}"
            )
        return cls(text)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _NO_USERINFO}


class SchedulerAddress(Address):
    """The same for a scheduler of a cluster, of any scheme."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ()


class SigningSecret(Reference):
    """A reference to a secret that signs what is sent: ``whsec_`` and base64 (Standard Webhooks), or any other text."""

    __slots__ = ()

    @classmethod
    def expected(cls, content: str) -> str | None:
        return (
            None if _is_strong(content) else f"a secret of at least {_LEAST_SECRET_BYTES} bytes, or whsec_ and base64"
        )

    @classmethod
    def found(cls, content: str) -> str:
        return HiddenText(content)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(secret|env|file):"}


class AccessToken(Reference):
    """A reference to the token of the control plane: 16 or more visible ASCII characters without spaces."""

    __slots__ = ()

    @classmethod
    def expected(cls, content: str) -> str | None:
        return None if _TOKEN.fullmatch(content) else "16 or more visible ASCII characters without spaces"

    @classmethod
    def found(cls, content: str) -> str:
        return HiddenText(content)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(secret|env|file):"}


class HiddenText(str):
    """What a reference led to, in the settings of a pipeline that runs. Its ``repr``, and so that of the settings, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


def with_secrets(settings: Model, look_up: Callable[[Reference], str] | None = None) -> Model:
    """The settings with the address or secret in place of each reference, for the pipeline only: never store, show or dump them.

    Raises ``SecretUnavailable`` with a line for each reference that leads to none. Blocks while it reads a file, or asks Prefect
    for a block.
    """
    problems: list[str] = []

    def found(reference: Reference) -> str:
        try:
            return (look_up or value_of)(reference)
        except SecretUnavailable as error:
            problems.append(str(error))
            return reference

    replaced: Model = _replaced(settings, found)
    if problems:
        raise SecretUnavailable("\n".join(dict.fromkeys(problems)))
    return replaced


def without_secrets(settings: Model) -> Model:
    """The settings with a stand-in for each reference, to examine the pipeline without running it."""
    return with_secrets(settings, lambda _: "https://from-a-secret.invalid/")


def value_of(reference: Reference) -> str:
    """The address or secret that the reference leads to. Raises ``SecretUnavailable``."""
    kind, _, name = reference.partition(":")
    try:
        match kind:
            case "env":
                value = os.environ[name]
            case "file":
                value = Path(name).read_text(encoding="utf-8").strip()
            case _:
                value = _block(name)
    except KeyError:
        raise SecretUnavailable(f"{reference}: there is no such environment variable") from None
    except UnicodeDecodeError:
        raise SecretUnavailable(f"{reference}: the file is not text in UTF-8") from None
    except OSError as error:
        raise SecretUnavailable(f"{reference}: {error.strerror or error}") from None
    if (expected := type(reference).expected(value)) is not None:
        raise SecretUnavailable(f"{reference}: expected {expected} as its content")
    return value


def _replaced(value: Any, look_up: Callable[[Reference], str]) -> Any:
    match value:
        case Reference() if value.is_reference:
            return type(value).found(str(look_up(value)))
        case BaseModel():
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            new = {name: _replaced(field, look_up) for name, field in fields.items()}
            changed = {name: field for name, field in new.items() if field is not fields[name]}
            return value.model_copy(update=changed) if changed else value
        case list() | tuple():
            items = [_replaced(item, look_up) for item in value]
            same = all(one is other for one, other in zip(items, value, strict=True))
            return value if same else type(value)(items)
        case _:
            return value


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port >= 0
    except ValueError:  # an invalid port or IPv6 address
        return False
    in_one_word = text.isprintable() and " " not in text
    return (
        bool(parts.hostname and parts.scheme)
        and has_port
        and in_one_word
        and parts.scheme in (schemes or {parts.scheme})
    )


def _is_strong(secret: str) -> bool:
    """Whether a secret has enough bytes. The base64 of Standard Webhooks must be valid."""
    try:
        return len(signing_key(secret)) >= _LEAST_SECRET_BYTES
    except ValueError:
        return False


def _written(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{scheme}://…" for scheme in schemes) or "SCHEME://…"


def _block(name: str) -> str:
    """The content of a Secret block. Raises ``OSError``."""
    from prefect.blocks.system import Secret  # noqa: PLC0415 - Prefect takes a second to import; most runs have no block
    from prefect.context import FlowRunContext  # noqa: PLC0415
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings  # noqa: PLC0415

    if FlowRunContext.get() is None:
        raise OSError("a run without Prefect has no blocks; write env:NAME or file:PATH")
    answer: list[Any] = []

    def load() -> None:
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                load_block: Any = Secret.load  # its types do not know `_sync`; in an async flow it returns a coroutine
                block = load_block(name, _sync=True)
            answer.append(block.get())
        except ValueError:
            answer.append(OSError("Prefect has no Secret block of this name"))
        except Exception as error:  # noqa: BLE001 - every error of the client: the run does not start without the secret
            answer.append(OSError(f"Prefect does not answer: {type(error).__name__}"))

    # A thread: a loop runs in this one, and the client of another loop cannot be used.
    thread = threading.Thread(target=copy_context().run, args=(load,), name="secret", daemon=True)
    thread.start()
    thread.join(_BLOCK_WITHIN_S)
    value = answer[0] if answer else OSError(f"Prefect does not answer within {_BLOCK_WITHIN_S:g} s")
    if isinstance(value, OSError):
        raise value
    if not isinstance(value, str):
        raise OSError("the Secret block's value is not text")
    return value
