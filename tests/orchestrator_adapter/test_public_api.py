"""The names and signatures that users of the adapter rely on: the facade and the public packages."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PINNED = Path(__file__).with_name("public_api.txt")
PUBLIC_PACKAGES = (
    "orchestrator_adapter",
    "orchestrator_adapter.bulkhead",
    "orchestrator_adapter.control_plane",
    "orchestrator_adapter.prefect_flow",
    "orchestrator_adapter.process",
    "orchestrator_adapter.testing",
)


def surface() -> str:
    """One line a public name, with its signature where it can be called."""
    lines = []
    for package in PUBLIC_PACKAGES:
        module = import_module(package)
        lines += sorted(
            line for name in module.__all__ for line in described(f"{package}.{name}", getattr(module, name))
        )
    return "\n".join(lines) + "\n"


def described(name: str, value: object) -> list[str]:
    """A class comes with its public methods."""
    if isinstance(value, ModuleType):
        return [f"{name}: module"]
    if not inspect.isclass(value):
        return [f"{name}{signature(value)}"]
    methods = (
        f"{name}.{method}{signature(member)}"
        for method, member in vars(value).items()
        if not method.startswith("_") and (callable(member) or isinstance(member, staticmethod | classmethod))
    )
    return [f"class {name}{signature(value)}", *methods]


def signature(value: object) -> str:
    """The parameters' names and kinds. Annotations and defaults are left out: Python versions print them differently."""
    function: Any = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ""
    bare = (parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters)
    optional = (
        parameter if parameter.default is parameter.empty else parameter.replace(default=...) for parameter in bare
    )
    return str(inspect.Signature(list(optional))).replace("=Ellipsis", "=…")


def test_the_public_surface_changes_only_on_purpose() -> None:
    """A name or parameter that disappears breaks a user: `python -m tests.orchestrator_adapter.test_public_api` pins anew."""
    assert surface() == PINNED.read_text(encoding="utf-8")


if __name__ == "__main__":
    PINNED.write_text(surface(), encoding="utf-8")
