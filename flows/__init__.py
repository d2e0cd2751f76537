"""The pipelines: settings to graph to flow. ``python -m flows`` is the command line."""
