"""The data plane: channel, edge, the two ends that operators see, and the ledger."""
