"""Reading a whole file that a user has named."""

from __future__ import annotations

import stat
from pathlib import Path


def read_regular_file(path: Path) -> bytes:
    """The content of a file. Raises ``OSError``, also for a pipe or a device: reading it could block for ever or never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder fails with the system's own reason
        raise OSError("expected a file, got a pipe, a socket or a device")
    return path.read_bytes()
