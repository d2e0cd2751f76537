"""Reports a run to Prefect: task runs, events, log lines, artifacts. Internal; ``reporter`` is its entry point."""
