"""Windows of a screening as calls of a bulkhead: progress, cancellation, resumption, positions that a worker holds."""
