"""``RetryBudget``: bounds the retries of all callers of one downstream. It knows neither time nor the downstream."""

from __future__ import annotations

import math

from orchestrator_adapter.primitives.check_fields import check_fields

_ROUNDING = 1e-9  # of a token: ten times 0.1 must make one, and in binary fractions it is a little less


class RetryBudget:
    """Tokens that the callers of one downstream share: a retry spends one, a success earns a part of one.

    While the downstream works, there are tokens for occasional failures. When every call fails, the tokens are soon spent.
    Then no call is retried, and the load is that of first attempts only.

    Attributes:
        capacity: The largest number of tokens, and the initial one.
        earned_per_success: In tokens. 0.1 admits one retry in ten calls in the long run.
        tokens: The tokens that are left.
        denied: Retries that were not made because no token was left.
    """

    def __init__(self, *, capacity: float = 10.0, earned_per_success: float = 0.1) -> None:
        check_fields(
            "RetryBudget",
            ("capacity", capacity, 1 <= capacity < math.inf, ">= 1 and finite"),
            (
                "earned_per_success",
                earned_per_success,
                0 < earned_per_success <= capacity,
                f"> 0 and <= capacity ({capacity})",
            ),
        )
        self.capacity = capacity
        self.earned_per_success = earned_per_success
        self.tokens = capacity
        self.denied = 0

    @property
    def has_token(self) -> bool:
        """Whether a retry could be made now."""
        return self.tokens >= 1 - _ROUNDING

    def spend(self) -> bool:
        """Take a token for a retry. Without a token it returns false and counts the retry as denied."""
        if not self.has_token:
            self.denied += 1
            return False
        self.tokens = max(0.0, self.tokens - 1)
        return True

    def return_token(self) -> None:
        """Return a token that was taken for a retry that was not made."""
        self._add(1)

    def earn(self) -> None:
        """The downstream answered."""
        self._add(self.earned_per_success)

    def _add(self, tokens: float) -> None:
        self.tokens = min(self.capacity, self.tokens + tokens)
