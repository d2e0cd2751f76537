#!/usr/bin/env python3
"""Search the repository for words that the glossary replaces, and print each with the plain term.

Exit code 1 if there is one. A word in its plain meaning is listed in `PLAIN`, with the phrase that shows the meaning.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# A pattern (case does not matter; it may be part of a longer identifier only where it says so) and what to write instead.
GLOSSARY = {
    r"\b_?(tell|tells|telling|told|retold|untold)\b": "report, notify, log, record, say",
    r"_(tell|told|untold)\b|\b_?(tell|told|untold)_": "report, notify, log, record",
    r"courier": "delivery",
    r"PrefectLink\b|\b_?desk\b|_?RecordDesk|\bDisplay\b": "reporter, run record file, artifact publisher",
    r"\bput(s|ting)?[ _]right\b": "reconcile",
    r"\bhurry\b|\blast[ _]words\b|\btidy|\bexhibit": "stop waiting, final update, reconcile earlier runs, publish artifacts",
    r"\b_?(hear|hears|heard|doubt|doubtful|news)\b": "receive, be notified; on response, mark uncertain, not on server",
    r"\basked[ _]early\b|\b_noticed\b": "requests before run, on task exit",
    r"\bdoors?\b|\b_?door_|_door\b|\bvisitors?\b|\bknock": "listener, pending handshake",
    r"\bkeepers?\b|\bundertaker": "supervise, reaper",
    r"\bthe book\b|\bbook\.|_book\b": "scheduler",
    r"\bin a row\b|\bpill[ _]paid\b": "consecutive, charged since last pill",
    r"\bcuts?[ _]off\b|\bcutting off\b": "timeout, expired, truncated",
    r"\bbur(y|ied|ies|ial|ials)\b|\b_?bury_|_bury\b|_buried\b|\bburied_": "dead-letter, DeadLetterWriter",
    r"\b(let|lets|letting)[ _]go\b": "release, finish, close",
    r"\bturn(s|ed)?[ _]\w*[ _]?away\b": "close inputs, reject",
    r"\bhasten": "cut the backoff short",
    r"\bg(ive|ives|ave|iven|iving)[ _]back\b": "return (nack)",
    r"\bdepartures?\b|_departures?\b|\b_?arrivals\b": "space available, items available; delays, preemptions",
    r"\bhand(s|ed)?[ _]over\b": "enqueue",
    r"\bis_about\b|\bis_only\b": "contains, consists only of",
    r"only[ _]new[ _]garbage|no[ _]more[ _]to[ _]look[ _]through": "frozen_heap, freeze_heap",
    r"meets[ _]again|forgotten[ _]early": "check and add, evicted early",
    r"\bleft[ _]behind\b|LeftBehind|\bmoods?\b|\bwind(s|ing)?[ _]up\b": "leaked tasks, biases, shut down",
    r"\btroubled?\b": "fault",
    r"\brefus(e|es|ed|al|als|ing)\b|\bRefused\b|_refused\b|\brefused_": "reject",
    r"\blook(s|ed)?[ _]at\b": "examine, check",
    r"(\b|_)(is|are|was|were)[ _](?-i:none)(\b|_)": "is not a …, invalid",
    r"\bcame? about\b": "did not start, happened",
    r"\bgravest\b|\bhow-manieth\b": "the most severe, restart count",
    r"\bnobody|\bsomebody|\beverybody|\bwhoever\b|\bwhichever\b|\bwhatever\b": "name the subject: no task, a client, each operator",
    r"\blikewise\b|\bas it were\b|\bmeanwhile\b|\btherein\b|\bwhereof\b|\bhitherto\b": "also, in the same way; while it runs",
}

# Plain meanings: a phrase in which the word is fine, and the reason.
PLAIN = {
    r"\"refuse\"|refuse connections": "a style of outage (`OutageStyle`), a value of the command line",
    r"connection[ _](is |was )?refused|ConnectionRefused\w*|ECONNREFUSED|refused[ _]connections?": "the system's own error",
    r"\bBury\b": "the alias in the facade",
    r"\.untold\.jsonl": "the suffix of a file that earlier versions wrote",
    r"\bLeftBehind\b": "the alias in orchestrator_adapter.testing",
}

SKIPPED = {"CHANGELOG.md", "requirements.txt", "requirements-dev.txt", "scripts/check_language.py"}
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".sh", ""}


def findings(text: str) -> list[tuple[int, str, str]]:
    """Line number, word and plain term of each finding in ``text``."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = _IS_PLAIN.sub(lambda match: " " * len(match.group()), line)
        for pattern, plain in _PATTERNS:
            found += [(number, match.group(), plain) for match in pattern.finditer(rest)]
    return found


def main(places: list[str]) -> int:
    """Check the tracked files under ``places`` (all, if none is given)."""
    listed = subprocess.run(["git", "ls-files", "--", *places], check=True, capture_output=True, text=True)  # noqa: S603, S607 - git, from the PATH
    count = 0
    for name in listed.stdout.splitlines():
        path = Path(name)
        if name in SKIPPED or path.name.startswith("LICENSE") or path.suffix not in SUFFIXES or not path.is_file():
            continue
        for number, word, plain in findings(path.read_text(encoding="utf-8")):
            print(f"{name}:{number}: {word!r}: write {plain}")
            count += 1
    if count:
        print(f"check_language: {count} words that the glossary replaces", file=sys.stderr)
    return int(count > 0)


_PATTERNS = [(re.compile(pattern, re.IGNORECASE), plain) for pattern, plain in GLOSSARY.items()]
_IS_PLAIN = re.compile("|".join(PLAIN), re.IGNORECASE)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
