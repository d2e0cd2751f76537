"""The files that a screening writes: checked before it begins, and each replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator_adapter import sync_directory

if TYPE_CHECKING:
    import pyarrow as pa

MAIN = "conjunctions"
LISTS = ("fleet", "slow", "unscreened")
"""The main list and the others, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Output:
    """A file or folder that an option names.

    Attributes:
        option: The option.
        path: The file or folder.
        is_folder: Whether it is a folder, which is made if it does not exist.
        may_have_files: Whether a folder may have files already.
    """

    option: str
    path: Path
    is_folder: bool = False
    may_have_files: bool = False


def list_names(*, apart: bool) -> list[str]:
    """The lists besides the main one. ``apart``: fleets have one of their own."""
    return [name for name in LISTS if apart or name != "fleet"]


def list_files(out: Path, names: Iterable[str]) -> dict[str, Path]:
    """The file of each list, by its name; one for all if ``out`` is JSON."""
    if out.suffix.lower() == ".json":
        return {MAIN: out}
    return {MAIN: out, **{name: out.with_name(f"{out.stem}.{name}{out.suffix}") for name in names}}


def problems_of(outputs: Iterable[Output], *, overwrite: bool) -> Iterator[str]:
    """Why something cannot be written, before the screening begins. Each reason once."""
    seen: dict[Path, str] = {}
    given: set[str] = set()
    for output in outputs:
        path = Path(os.path.abspath(output.path))  # noqa: PTH100 - the same without resolving links
        if path in seen:
            yield f"{output.option}: {output.path} is also written by {seen[path]}"
        seen[path] = output.option
        try:
            if (why := _problem(output, overwrite=overwrite)) is not None and why not in given:
                given.add(why)
                yield f"{output.option}: {why}"
        except (OSError, ValueError) as error:  # a name that is too long; a null byte
            yield f"{output.option}: {output.path}: {getattr(error, 'strerror', None) or error}"


def _problem(output: Output, *, overwrite: bool) -> str | None:
    path, parent = output.path, output.path.parent
    if not parent.is_dir():
        return f"there is no folder {parent}" if not parent.exists() else f"{parent} is not a folder"
    if output.is_folder:
        if not path.exists():
            return None if os.access(parent, os.W_OK) else f"the folder {parent} is not writable"
        if not path.is_dir():
            return f"{path} is not a folder"
        if not os.access(path, os.W_OK):
            return f"the folder {path} is not writable"
        if not overwrite and not output.may_have_files and any(path.iterdir()):
            return f"the folder {path} is not empty; choose another, or give --overwrite"
        return None
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists() and not overwrite:
        return f"{path} exists; choose another name, or give --overwrite"
    if not os.access(parent, os.W_OK):
        return f"the folder {parent} is not writable"
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file. It is on the disk when this returns.

    Raises ``OSError`` with the file's name; the old file is unchanged then.
    """
    with _draft_of(path) as draft, draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """A file to write instead, which then replaces ``path``, or is removed if there is an error."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:  # Ctrl-C
        draft.unlink(missing_ok=True)
        raise


def write_texts(folder: Path, texts: Iterable[tuple[str, str]]) -> int:
    """Write a file of each name and text into the folder, which is made. Returns how many. Raises ``OSError``.

    Each file is whole or not there; files of other names stay. It does not wait for the disk: for thousands of files that would
    take minutes.
    """
    folder.mkdir(exist_ok=True)
    count = 0
    for count, (name, text) in enumerate(texts, 1):  # noqa: B007 - the last one is the number
        with _draft_of(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
            (folder / name).unlink(missing_ok=True)  # ext4 writes to the disk when a file replaces another: 4 ms each
    return count


def write_lists(files: Mapping[str, Path], tables: Mapping[str, pa.Table], about: Mapping[str, Any]) -> None:
    """Write the lists in the format that the suffix names. Raises ``OSError``."""
    # Imported here: pyarrow takes 0.2 s, which a screening without files does not need.
    from sda_ops.screening.output.tables import csv_of, json_of, parquet_of  # noqa: PLC0415

    if files[MAIN].suffix.lower() == ".json":
        write_whole(files[MAIN], json_of(tables, about))
        return
    for name, path in files.items():
        table = tables[name]
        write_whole(path, csv_of(table) if path.suffix.lower() == ".csv" else parquet_of(table, about))
