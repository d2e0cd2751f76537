"""Fixtures that more than one folder uses; which tests share one xdist worker; how many examples Hypothesis tries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE
from tests.helpers.sizes import examples

if TYPE_CHECKING:
    from tests.helpers.prefect_server import PrefectServer

# No deadline: the machine is shared, so the time an example takes says nothing. Derandomized: a run must not fail by chance;
# `make explore` tries new examples.
settings.register_profile(
    "shared machine", deadline=None, derandomize="NEW_EXAMPLES" not in os.environ, max_examples=examples(100)
)
settings.load_profile("shared machine")

_GROUPS = {
    "numba_once": "numba",
    "killed_prefect_server": "killed Prefect server",
    "installation": "killed Prefect server",
    "shared_prefect_server": "shared Prefect server",
    "prefect_server": "shared Prefect server",
}
"""A file with a test that uses such a fixture belongs to this group, which one xdist worker runs as a whole."""


@cache
def _group(path: str) -> str | None:
    """The group of a file: what its tests share."""
    text = (Path(__file__).parents[1] / path).read_text(encoding="utf-8")
    used = (each for each in _GROUPS if re.search(rf'\b{each}: |usefixtures\("{each}"', text))
    return next((_GROUPS[fixture] for fixture in used), None)


def _scope(nodeid: str) -> str:
    """What one xdist worker runs as a whole: the files of a group, or a file, whose module fixtures are then made once.

    So there is one server a group, and no two tests use it at once: on SQLite it drops events that arrive while its database
    is locked. And numba compiles once, and not once in each worker.
    """
    path = nodeid.partition("::")[0]
    return _group(path) or path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Schedule by ``_scope``: with pytest 9.2 the marker ``xdist_group`` of xdist 3.8 has no effect."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only the controller needs it

    class ByServerAndFile(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    config.option.loadscopereorder = False
    return ByServerAndFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the groups first, then the other integration tests: they take longest."""
    paths = {item: item.nodeid.partition("::")[0] for item in items}
    items.sort(key=lambda item: (_group(paths[item]) is None, not paths[item].startswith("tests/integration/")))


@pytest.fixture(scope="session", autouse=True)
def _claims_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A claims folder for this session and its child processes: their claims cannot block a real pipeline."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("claims")))
        yield


@pytest.fixture(scope="session")
def numba_once() -> None:
    """For files that screen with numba if it is installed: one worker runs them, because compiling takes 5 s of CPU."""


@pytest.fixture(scope="session")
def shared_prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A running ``prefect server start`` with every service, once a session. Tests that use it must not stop it.

    This process does *not* use it by itself: pass ``server.api_url`` to a client, ``server.environment`` to a child process.
    """
    yield from _running_server(tmp_path_factory)


@pytest.fixture(scope="session")
def killed_prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """Another one, for the tests that kill it. Such a test must start it again before it ends."""
    yield from _running_server(tmp_path_factory)


@pytest.fixture(scope="session")
def prefect_server(shared_prefect_server: PrefectServer) -> Iterator[None]:
    """The shared server, and this process uses it for every flow that runs here."""
    from tests.helpers.prefect_server import used_by_this_process  # noqa: PLC0415 - Prefect only where it is needed

    with used_by_this_process(shared_prefect_server):
        yield


def _running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    from flows.local_prefect.processes import free_ports  # noqa: PLC0415 - httpx and others only where they are needed
    from tests.helpers.prefect_server import PrefectServer  # noqa: PLC0415 - the same

    server = PrefectServer(tmp_path_factory.mktemp("prefect"), free_ports(1)[0])
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def _many_schedules() -> Iterator[None]:
    """For modules that run many schedules: the heap is frozen once, and not for each schedule."""
    with frozen_heap():
        yield
