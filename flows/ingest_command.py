"""``python -m flows ingest`` and ``check``: run ``sda-ingest`` in this process, or say whether it could run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows.api_health import add_api_wait_argument, wait_for_api
from flows.ingest_topology import build_topology, ingest_pipeline
from flows.progress import Progress
from flows.settings import IngestSettings, SettingsError, load_settings
from orchestrator_adapter import BuiltGraph, GraphError
from orchestrator_adapter.pipeline import Outcome, run_pipeline
from orchestrator_adapter.report import ExitCode, cause


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """The settings file, as every command takes it."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings, TOML; variables SDA_INGEST__SECTION__NAME override it (default: built-in defaults)",
    )


def add_ingest_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``ingest``."""
    add_settings_argument(parser)
    parser.add_argument(
        "--no-api", action="store_true", help="run without Prefect, even if PREFECT_API_URL names a server"
    )
    add_api_wait_argument(parser, default_s=30.0)
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the run's report here (default: as configured)"
    )
    parser.add_argument(
        "--duration", type=float, metavar="S", help="drain and stop after so many seconds (default: never)"
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress on standard error")


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``check``."""
    add_settings_argument(parser)
    parser.add_argument(
        "--mermaid", action="store_true", help="print the graph as a Mermaid flowchart instead of a table"
    )


def run_check(args: argparse.Namespace) -> int:
    """Validate settings and topology and print the graph; name every problem and return 1 where there are any."""
    try:
        graph = build_topology(load_settings(IngestSettings, args.config))
        graph.validate()
    except SettingsError as error:
        return _refuse(error.problems)
    except GraphError as error:
        return _refuse([str(problem) for problem in error.problems])
    print(graph.to_mermaid() if args.mermaid else graph.describe())
    return ExitCode.OK


def run_ingest(args: argparse.Namespace) -> int:
    """Run until the sources end or a signal comes; the exit code says how it went (see ``--help``)."""
    try:
        settings = load_settings(IngestSettings, args.config)
        if args.report is not None:
            settings = settings.model_copy(update={"report": args.report})
        build_topology(settings).validate()
    except SettingsError as error:
        return _refuse(error.problems)
    except GraphError as error:
        return _refuse([str(problem) for problem in error.problems])
    api_url = None if args.no_api else os.environ.get("PREFECT_API_URL")
    if api_url and (why := asyncio.run(wait_for_api(api_url, args.api_wait, _say_that_it_waits(args.api_wait)))):
        return _refuse(
            [f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}; start it, or run with --no-api"]
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a poll is a line an item
    try:
        outcome = asyncio.run(ingest(settings, prefect=bool(api_url), duration_s=args.duration, quiet=args.quiet))
    except OSError as error:
        return _refuse([str(error)])
    print(closing_words(outcome, settings))
    return outcome.exit_code


async def ingest(
    settings: IngestSettings,
    *,
    prefect: bool,
    duration_s: float | None,
    quiet: bool,
    on_built: Callable[[BuiltGraph], object] | None = None,
) -> Outcome:
    """Run ``sda-ingest`` here, as a Prefect flow or without any Prefect API. ``on_built`` sees the graph first."""
    progress = Progress("sda-ingest")

    def built(graph: BuiltGraph) -> None:
        if on_built is not None:
            on_built(graph)
        if not quiet:
            progress.attach(graph)
        if duration_s is not None:
            asyncio.get_running_loop().call_later(duration_s, graph.request_shutdown, f"ran for {duration_s:g} s")

    try:
        if not prefect:
            return await run_pipeline(ingest_pipeline(settings), on_built=built)
        # Importing Prefect takes a second, and nothing else here needs it.
        from prefect import tags  # noqa: PLC0415

        from flows.ingest import sda_ingest  # noqa: PLC0415
        from orchestrator_adapter.prefect_flow import run_flow  # noqa: PLC0415

        with tags("sda", "streaming"):  # as prefect.yaml has them
            return await run_flow(sda_ingest, settings, on_built=built)
    finally:
        await progress.close()


def closing_words(outcome: Outcome, settings: IngestSettings) -> str:
    """What a person wants to read at the end."""
    event = outcome.event
    figures, why = event.figures, cause(event)
    latency = figures.latency
    lines = [
        f"{type(event).__name__}{f': {why}' if why else ''} after {figures.elapsed_s:.1f} s (exit code {outcome.exit_code})",
        f"  ledger   {figures.ledger}",
    ]
    lines += [f"  ledger   {violation}" for violation in figures.violations]
    if latency is not None:
        lines.append(
            f"  latency  p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, max {latency.max_ms:.1f} ms"
        )
    restarts = ", ".join(f"{name} {history.total}" for name, history in figures.restarts.items())
    lines.append(f"  restarts {restarts or 'none'}")
    lines += [f"  straggler {straggler.operator} #{straggler.instance}" for straggler in figures.stragglers]
    lines += [f"  problem  {problem}" for problem in (*figures.problems, *outcome.problems)]
    lines += [
        f"  log      {settings.event_log.directory.resolve()}",
        f"  report   {settings.report.resolve()}",
    ]
    return "\n".join(lines)


def _say_that_it_waits(limit_s: float) -> Callable[[str], None]:
    def say(why: str) -> None:
        print(f"sda-ingest: waiting up to {limit_s:g} s for the Prefect API: {why}", file=sys.stderr, flush=True)

    return say


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        print(f"sda-ingest: {problem}", file=sys.stderr)
    return ExitCode.FAILED
