"""Where worker processes run: on this machine, or on a cluster."""

from __future__ import annotations

from flows.settings.fusion import ClusterSettings
from orchestrator_adapter.bulkhead import Launcher, Network


def launcher_of(cluster: ClusterSettings | None) -> Launcher | None:
    """The launcher of a cluster's workers; ``None`` for this machine. Raises ``MissingExtra``."""
    if cluster is None:
        return None
    # Imported here: Prefect takes a second, and only clusters need it.
    from orchestrator_adapter.prefect_flow.workers import dask_launcher, ray_launcher  # noqa: PLC0415

    launch = {"dask": dask_launcher, "ray": ray_launcher}[cluster.kind]
    return launch(cluster.address, network=Network(cluster.host, bind=cluster.bind, port=cluster.port))
