"""Foreign text (an exception's, a sender's) made fit to be told: what cannot travel or be stored costs a character. Pure."""

from __future__ import annotations

import re

LONGEST_MESSAGE = 100_000
"""Characters of a state's message, as Prefect's own engine has it."""

_REFUSED = re.compile("[\ud800-\udfff\x00]")  # lone surrogates are no UTF-8; PostgreSQL stores no NUL
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str, *, limit: int = LONGEST_MESSAGE) -> str:
    """``text`` with what nobody could store replaced and, where it is longer than ``limit`` characters, its middle left out.

    Both ends stay, in the words of Prefect's own engine: of a stack or a traceback the end says most.
    """
    text = _REFUSED.sub(_REPLACEMENT, text)
    if len(text) <= limit:
        return text
    half = limit // 2
    cut = f"{text[:half]}...{len(text) - 2 * half} additional characters...{text[len(text) - half :]}"
    return cut if len(cut) < len(text) else text
