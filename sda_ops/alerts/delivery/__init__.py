"""HTTP delivery of alerts to subscribers, and the sink ``alerts``."""
