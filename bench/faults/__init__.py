"""``python -m bench.faults``: what the page, the metrics, the alerts and the log say of twelve faults, and how soon."""
