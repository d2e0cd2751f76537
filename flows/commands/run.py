"""``python -m flows ingest``, ``fusion`` and ``check``: run a pipeline in this process, or say whether it could run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.commands.progress import Progress
from flows.local_prefect.api_health import add_api_wait_argument, wait_for_api
from flows.pipelines import INGEST, PIPELINES, PipelineKind
from flows.settings.load import SettingsError
from orchestrator_adapter import BuiltGraph, GraphError, JsonFormatter, MissingExtra, OperatorError, frozen_heap
from orchestrator_adapter.process import ExitCode, RunOutcome, cause, run_pipeline

_UNUSABLE = (SettingsError, GraphError, MissingExtra)


def add_settings_argument(parser: argparse.ArgumentParser, *prefixes: str) -> None:
    """The settings file, as every command takes it; variables with these prefixes override it."""
    variables = " or ".join(f"{prefix}SECTION__NAME" for prefix in prefixes)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"settings, TOML; variables {variables} override it (default: built-in defaults)",
    )


def add_pipeline_argument(parser: argparse.ArgumentParser) -> None:
    """Which pipeline a command is about, where it can be about each."""
    parser.add_argument(
        "--pipeline", choices=sorted(PIPELINES), default=INGEST.name, help="which one (default: %(default)s)"
    )


def add_run_arguments(kind: PipelineKind, parser: argparse.ArgumentParser) -> None:
    """Add every option of ``ingest`` and ``fusion``."""
    add_settings_argument(parser, kind.prefix)
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
    add_pipeline_argument(parser)
    add_settings_argument(parser, *(kind.prefix for kind in PIPELINES.values()))
    parser.add_argument(
        "--mermaid", action="store_true", help="print the graph as a Mermaid flowchart instead of a table"
    )


def run_check(args: argparse.Namespace) -> int:
    """Validate settings and topology and print the graph; name every problem and return 1 where there are any."""
    kind = PIPELINES[args.pipeline]
    try:
        graph = kind.pipeline(kind.load(args.config)).graph
        graph.validate()
    except _UNUSABLE as error:
        return _refuse(kind, _problems(error))
    print(graph.to_mermaid() if args.mermaid else graph.describe())
    return ExitCode.OK


def run(kind: PipelineKind, args: argparse.Namespace) -> int:
    """Run until the sources end or a signal comes; the exit code says how it went (see ``--help``)."""
    try:
        settings = kind.load(args.config)
        if args.report is not None:
            settings = settings.model_copy(update={"report": args.report})
        kind.pipeline(settings).graph.validate()
    except _UNUSABLE as error:
        return _refuse(kind, _problems(error))
    api_url = None if args.no_api else os.environ.get("PREFECT_API_URL")
    if api_url and (why := asyncio.run(wait_for_api(api_url, args.api_wait, _say_that_it_waits(kind, args.api_wait)))):
        return _refuse(
            kind, [f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}; start it, or run with --no-api"]
        )
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a poll is a line an item
    try:
        outcome = asyncio.run(
            perform(kind, settings, prefect=bool(api_url), duration_s=args.duration, quiet=args.quiet)
        )
    except (OSError, OperatorError) as error:  # of what comes before the graph
        return _refuse(kind, [str(error)])
    print(closing_words(outcome, kind.outputs(settings)))
    return outcome.exit_code


async def perform(
    kind: PipelineKind,
    settings: Any,
    *,
    prefect: bool,
    duration_s: float | None,
    quiet: bool,
    on_built: Callable[[BuiltGraph], object] | None = None,
) -> RunOutcome:
    """Run the pipeline here, as a Prefect flow or without any Prefect API. ``on_built`` sees the graph first."""
    progress = Progress(kind.name)

    def built(graph: BuiltGraph) -> None:
        if on_built is not None:
            on_built(graph)
        if not quiet:
            progress.attach(graph)
        if duration_s is not None:
            asyncio.get_running_loop().call_later(duration_s, graph.request_shutdown, f"ran for {duration_s:g} s")

    try:
        if not prefect:
            with frozen_heap():
                return await run_pipeline(kind.pipeline(settings), on_built=built)
        # Importing Prefect takes a second, and nothing else here needs it.
        from prefect import tags  # noqa: PLC0415

        from orchestrator_adapter.prefect_flow import run_flow  # noqa: PLC0415

        with tags("sda", "streaming"):  # as prefect.yaml has them
            return await run_flow(kind.load_flow(), settings, on_built=built)
    finally:
        await progress.close()


def closing_words(outcome: RunOutcome, outputs: Mapping[str, Path]) -> str:
    """What a person wants to read at the end."""
    event = outcome.event
    figures, why = event.figures, cause(event)
    latency = figures.latency
    lines = [
        f"{event.name}{f': {why}' if why else ''} after {figures.elapsed_s:.1f} s (exit code {outcome.exit_code})",
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
    lines += [f"  {what:8} {place.resolve()}" for what, place in outputs.items()]
    return "\n".join(lines)


def _say_that_it_waits(kind: PipelineKind, limit_s: float) -> Callable[[str], None]:
    def say(why: str) -> None:
        print(f"{kind.name}: waiting up to {limit_s:g} s for the Prefect API: {why}", file=sys.stderr, flush=True)

    return say


def _problems(unusable: SettingsError | GraphError | MissingExtra) -> list[str]:
    match unusable:
        case SettingsError(problems=problems):
            return problems
        case GraphError(problems=found):
            return [str(problem) for problem in found]
        case MissingExtra():
            return [str(unusable)]


def _refuse(kind: PipelineKind, problems: list[str]) -> int:
    for problem in problems:
        print(f"{kind.name}: {problem}", file=sys.stderr)
    return ExitCode.FAILED
