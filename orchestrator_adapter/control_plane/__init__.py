"""The control plane: a run's live page, figures, health and metrics over HTTP, served by a thread of its own.

It answers while the graph's event loop is stalled. ``docs/control-plane.md`` is the reference: pages, access, rules, metrics.

Modules, bottom to top:

- ``config``: ``ControlPlane``, where and how to serve
- ``snapshot``: takes the graph's status on its event loop; keeps the last one for the time when the loop is stalled
- ``collectors``: the user's own metrics; ``panels``: tables of them
- ``health``: a status to a health, as a pure function; ``exposition``: a status to metric families, text and JSON
- ``document``: what ``/graph`` answers; ``graph_document`` makes it, with ``history`` (rates, shares, latencies), ``layout``,
  ``bottleneck`` and ``headline``
- ``access``: who may read; ``actions``: drain, pause, force; ``event_stream``: ``/events``; ``pages``: which path has which answer
- ``server``: the thread and its socket; ``connections``: their limits. ``page/`` has the files of the live page

It imports ``runtime`` and knows nothing of processes, signals or Prefect. ``server`` is imported where it is used: a run
without a control plane loads no web server.
"""

from orchestrator_adapter.control_plane.config import ControlPlane, Figure, MetricsPanel
from orchestrator_adapter.control_plane.health import Health, HealthStatus, health_of
from orchestrator_adapter.control_plane.links import Links

__all__ = ["ControlPlane", "Figure", "Health", "HealthStatus", "Links", "MetricsPanel", "health_of"]
