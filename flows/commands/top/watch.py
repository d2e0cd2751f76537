"""Shows documents: one, or each new one until the user ends it. A control plane that stops answering is asked again."""

from __future__ import annotations

import argparse
import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.live import Live

from flows.commands.messages import report_problems
from flows.commands.top.client import (
    DEFAULTS,
    NoDocument,
    Source,
    document_of,
    is_encrypted_or_local,
    read_token,
    trusting,
    url_of,
)
from flows.commands.top.picture import Banners, picture
from flows.output import print_line, print_problem
from orchestrator_adapter.control_plane.document import Document

_REDRAW_S = 0.25  # how soon a new size of the terminal shows, and how long `q` may take
_WIDTH = 120  # of a picture that goes into a file or a pipe
_FAILING = 3
_ENDS = frozenset({b"q", b"Q", b"\x03", b"\x04"})


def top(args: argparse.Namespace) -> int:
    """Show the document of the control plane that the options name; returns the exit code."""
    try:
        sources = _sources(args)
        source, body, note = _first(sources)
        document = document_of(body, source.url)
    except (ValueError, NoDocument) as problem:
        return report_problems("top", [str(problem)])
    if args.json:
        print_line(body.decode())
        return _exit_code(document)
    console = Console(highlight=False)
    if args.once or not console.is_terminal or console.is_dumb_terminal:
        return _once(document, console, note)
    try:
        _watch(source, document, console, interval_s=args.interval, note=note)
    except KeyboardInterrupt:  # Ctrl-C, or a signal that asks to stop
        pass
    except OSError as error:
        print_problem(f"top: the terminal cannot be used: {error.strerror or error}")
        return 1
    return 0


def _sources(args: argparse.Namespace) -> list[Source]:
    token = read_token(args.token_file) if args.token_file is not None else ""
    tls = trusting(args.ca) if args.ca is not None else None
    urls = DEFAULTS if args.address is None else (url_of(args.address, tls=tls is not None),)
    for url in urls:
        if token and not is_encrypted_or_local(url):
            raise ValueError(f"{url}: the token would be sent unencrypted: use https://, or a tunnel to this machine")
        if tls is not None and not url.startswith("https:"):
            raise ValueError(f"{url}: --ca is of use for an address with https:// only")
    return [Source(url, token, str(args.token_file), tls) for url in urls]


def _first(sources: list[Source]) -> tuple[Source, bytes, str]:
    """The first control plane that answers, its answer, and a note on the others that answer. Raises `NoDocument`."""
    answers: list[tuple[Source, bytes]] = []
    problems: list[str] = []
    for source in sources:
        try:
            body = source.fetch()
            document_of(body, source.url)
            answers.append((source, body))
        except NoDocument as problem:
            problems.append(str(problem))
    if not answers:
        raise NoDocument("; ".join(problems))
    (first, body), *others = answers
    note = "".join(
        f"This is {first.url}. {other.url} answers as well: python -m flows top {other.url}" for other, _ in others
    )
    return first, body, note


def _exit_code(document: Document) -> int:
    return _FAILING if document.health.status == "failing" else 0


def _once(document: Document, console: Console, note: str) -> int:
    width = console.width if console.is_terminal else max(_WIDTH, int(os.environ.get("COLUMNS") or 0))
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(picture(document, width=width, banners=Banners(note=note)))
    print_line("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return _exit_code(document)


# The picture that stays.


@dataclass(frozen=True, slots=True)
class _Lost:
    why: str


def _watch(source: Source, document: Document, console: Console, *, interval_s: float, note: str) -> None:
    """Show each new document until `q`."""
    answers: queue.SimpleQueue[Document | _Lost] = queue.SimpleQueue()
    # A request may hang for seconds. The thread ends with the process, so that `q` does not wait for it.
    fetching = threading.Thread(target=_fetch, args=(source, interval_s, answers.put), name="top", daemon=True)
    lost, last_answer, drawn = "", time.monotonic(), None
    with (
        _single_keys(sys.stdin) as pressed,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        fetching.start()
        while True:
            while not answers.empty():
                match answers.get():
                    case _Lost(why):
                        lost = why
                    case Document() as document:
                        lost, last_answer = "", time.monotonic()
            width, height = console.size
            lost_for_s = float(round(time.monotonic() - last_answer)) if lost else 0.0
            if (to_draw := (document, lost, lost_for_s, width, height)) != drawn:  # drawing takes tens of ms
                banners = Banners(lost, lost_for_s, note)
                live.update(picture(document, width=width, height=height, banners=banners), refresh=True)
                drawn = to_draw
            if pressed(_REDRAW_S):
                return


def _fetch(source: Source, interval_s: float, put: Callable[[Document | _Lost], object]) -> None:
    while True:
        began = time.monotonic()
        try:
            put(document_of(source.fetch(), source.url))
        except NoDocument as problem:
            put(_Lost(str(problem)))
        time.sleep(max(0.0, began + interval_s - time.monotonic()))


@contextmanager
def _single_keys(keyboard: TextIO) -> Iterator[Callable[[float], bool]]:
    """Within it, keys arrive without Enter and are not shown. Gives a function: wait so long, and whether a key ends it."""
    if not keyboard.isatty():
        yield _wait
        return
    number = keyboard.fileno()

    def pressed(timeout_s: float) -> bool:
        if not select.select([number], [], [], timeout_s)[0]:
            return False
        key = os.read(number, 1)
        return not key or key in _ENDS  # nothing: the terminal is closed

    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _wait(timeout_s: float) -> bool:
    time.sleep(timeout_s)
    return False
