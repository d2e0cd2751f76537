"""Prefect's command line, with workers that do not give up while no API answers: ``python -m flows.local_prefect.patient_worker worker start …``.

Prefect's worker ends after a dozen consecutive polls that failed (``prefect.workers.base``: ``critical_service_loop(…,
backoff=4)``, about a quarter of an hour), and ends its flow runs with SIGKILL. A pipeline runs on without an API, so its
worker has to. The name that is replaced here is not documented; ``tests/flows/local_prefect/test_patient_worker.py`` fails
when it changes.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.utilities.services import critical_service_loop
from prefect.workers import base

logger = logging.getLogger("flows.worker")

GIVEN_UP = "Service exceeded error threshold."
"""The message of the ``RuntimeError`` with which Prefect's loop gives up."""


async def patient_service_loop(*args: Any, **options: Any) -> None:
    """Prefect's loop, started again each time it gives up. Any other error of it is raised."""
    while True:
        try:
            return await critical_service_loop(*args, **options)
        except RuntimeError as error:
            if str(error) != GIVEN_UP:
                raise
            logger.warning("no Prefect API answers; the worker continues to ask, and its flow runs run on")


def be_patient() -> None:
    """Replace the loop of the workers in this process."""
    base.critical_service_loop = patient_service_loop  # type: ignore[attr-defined] # where workers look it up


if __name__ == "__main__":
    from prefect.cli import app

    be_patient()
    app()
