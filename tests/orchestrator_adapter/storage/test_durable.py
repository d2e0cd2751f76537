"""Folders and files that survive a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator_adapter.storage.durable import make_directory


def test_a_folder_whose_place_a_file_has_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Also as a parent of the folder."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=f"Not a directory: '{tmp_path / 'file'}"):
            make_directory(folder)
