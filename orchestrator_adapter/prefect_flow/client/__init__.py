"""Calls to Prefect's API, the names of our events, and the undocumented parts of Prefect. Internal."""
