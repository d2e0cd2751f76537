"""Makes text from outside (an exception's, a sender's) storable: characters that no server can store are replaced. Pure."""

from __future__ import annotations

import re

LONGEST_MESSAGE = 100_000
"""Characters of a state's message: the limit of Prefect's own engine."""

_NOT_STORABLE = re.compile("[\ud800-\udfff\x00]")  # a lone surrogate is not valid UTF-8; PostgreSQL does not store NUL
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str, *, limit: int = LONGEST_MESSAGE) -> str:
    """``text`` with characters replaced that cannot be stored, and its middle left out if it is longer than ``limit``.

    The wording of the cut is that of Prefect's own engine. Both ends stay: the end of a traceback says most.
    """
    text = _NOT_STORABLE.sub(_REPLACEMENT, text)
    if len(text) <= limit:
        return text
    half = limit // 2
    cut = f"{text[:half]}...{len(text) - 2 * half} additional characters...{text[len(text) - half :]}"
    return cut if len(cut) < len(text) else text
