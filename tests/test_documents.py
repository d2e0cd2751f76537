"""The pages that users read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.support import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_of_the_project_leads_to_one(page: Path) -> None:
    """A page links to files that exist; addresses outside the project are not checked."""
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_readme_is_one_page() -> None:
    """The README has at most 90 lines; everything else is on pages of its own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90
