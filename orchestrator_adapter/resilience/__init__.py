"""How to call a downstream that fails: retry with jitter, retry budget, circuit breaker, HTTP exchange."""
