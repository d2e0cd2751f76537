"""Files that gzip may have compressed; recognised by their content, not by their name."""

from __future__ import annotations

import zlib

MAX_INFLATED_BYTES = 256 * 1024 * 1024
"""The bound on a compressed file's content: ten times the size of all catalogued objects as JSON."""

_MAGIC = b"\x1f\x8b"
_WITH_GZIP_HEADER = zlib.MAX_WBITS | 16


def inflated(content: bytes) -> bytes:
    """The content of a gzip file, of all its members; any other content as it is.

    Raises ``ValueError`` for a gzip stream that is invalid, truncated or inflates to more than `MAX_INFLATED_BYTES`.
    """
    if not content.startswith(_MAGIC):
        return content
    result = bytearray()
    try:
        while content.startswith(_MAGIC):
            inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
            result += inflater.decompress(content, MAX_INFLATED_BYTES + 1 - len(result))
            if len(result) > MAX_INFLATED_BYTES:
                raise ValueError(f"the gzip file inflates to more than {MAX_INFLATED_BYTES} bytes")
            if not inflater.eof:
                raise ValueError("the gzip file is truncated")
            content = inflater.unused_data
    except zlib.error as error:
        raise ValueError(f"the gzip file is invalid: {error}") from error
    return bytes(result)
