"""The control plane: what a run can be asked over HTTP, on a thread of its own.

``GET /health`` and ``GET /metrics`` answer while the graph's event loop stands still, which is when they are wanted most.
``docs/control-plane.md`` is the reference: rules, metrics, alerts.

Layout, bottom to top:

- ``config``: ``ControlPlane``, where and how to serve
- ``snapshot``: the graph between two of its steps, fetched from its event loop, or the last one that could be had
- ``health``: a verdict on it, as a pure function; ``exposition``: its figures as metric families, text and JSON
- ``server``: the pages, the connections, the thread

It knows ``runtime`` and ``status``, and nothing of processes, signals or Prefect. ``server`` is imported where it is used:
a run without a control plane loads no web server.
"""

from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.health import Health, HealthStatus, judge

__all__ = ["ControlPlane", "Health", "HealthStatus", "judge"]
