"""The adapter's rooms, drawn from its imports, and the names it promises to its users."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.helpers.support import ROOT

PACKAGE = ROOT / "orchestrator_adapter"

MOST_ROOMS = 15
MOST_ARROWS = 65
"""From HOUSE.md: what was measured for this layout (14 rooms, 63 arrows), with a little air."""


def room(module: str) -> str:
    """The folder or module right below the package; the facade itself is a room, too."""
    return ([*module.split("."), "__init__"])[1]


def imports_of(path: Path) -> set[str]:
    """The adapter's modules that one file imports, functions' own imports included."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names if name.name.split(".")[0] == PACKAGE.name}
    return modules


def arrows() -> set[tuple[str, str]]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        here = parts[0]
        found |= {(here, there) for module in imports_of(path) if (there := room(module)) != here}
    return found


def test_the_adapter_has_few_rooms_and_few_arrows_between_them() -> None:
    """A new room, or an arrow that the layout does not have, is a decision: change the figure, and say why."""
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)
    drawn = arrows()
    assert len(drawn) <= MOST_ARROWS, sorted(drawn)


def test_no_file_is_long_and_no_class_is() -> None:
    """A file of more than 500 lines, or a class of more than 300, has more than one concern."""
    long = []
    for folder in ("orchestrator_adapter", "sda_ops", "flows", "bench", "tests", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            lines = text.count("\n")
            if lines > 500:
                long.append(f"{path.relative_to(ROOT)}: {lines} lines")
            if lines <= 300:  # it has no longer class
                continue
            classes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))
            long += [
                f"{path.relative_to(ROOT)}: class {node.name} has {lines} lines"
                for node in classes
                if (lines := (node.end_lineno or 0) - node.lineno + 1) > 300
            ]
    assert long == []
