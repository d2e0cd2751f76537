from __future__ import annotations

import re
from typing import Any

from tests.helpers.support import ROOT


async def test_the_example_on_the_page_about_control_items_runs() -> None:
    """The example of ``docs/control-items.md`` is a test, and it passes."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/control-items.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "docs/control-items.md", "exec", dont_inherit=True), names)
    await names["test_control_items_keep_their_place"]()
