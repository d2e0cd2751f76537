"""``KEPT``: marks the context of what outlives an operator instance."""

from __future__ import annotations

from contextvars import ContextVar

KEPT: ContextVar[bool] = ContextVar("kept", default=False)
"""Whether code runs on behalf of a kept resource: while it is made, and in tasks and callbacks that it starts then."""
