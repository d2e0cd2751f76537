"""Deployable pipelines: settings -> graph -> flow. ``python -m flows`` is the command line."""
