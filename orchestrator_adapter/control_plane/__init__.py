"""The control plane: health and metrics of a run over HTTP, served by a thread of its own.

``GET /health`` and ``GET /metrics`` answer while the graph's event loop is stalled. ``docs/control-plane.md`` is the
reference: rules, metrics, alerts.

Modules, bottom to top:

- ``config``: ``ControlPlane``, where and how to serve
- ``snapshot``: takes the graph's status on its event loop; keeps the last one for the time when the loop is stalled
- ``collectors``: the user's own metrics
- ``health``: a status to a health, as a pure function; ``exposition``: a status to metric families, text and JSON
- ``server``: pages, connections, thread

It imports ``runtime`` and knows nothing of processes, signals or Prefect. ``server`` is imported where it is used: a run
without a control plane loads no web server.
"""

from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.health import Health, HealthStatus, health_of

__all__ = ["ControlPlane", "Health", "HealthStatus", "health_of"]
