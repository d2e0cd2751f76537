"""A Prefect server and worker as processes on this machine."""
