"""Runs a pipeline in this process, as a Prefect flow or without Prefect; ``ingest``, ``fusion`` and ``demo`` use it."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.commands.messages import (
    announce,
    log_as_json_lines,
    log_prefect_as_json_lines,
    on_terminal,
    report_problems,
)
from flows.commands.options import add_api_wait_argument, add_settings_argument, seconds
from flows.commands.progress import Progress
from flows.local_prefect.api_health import wait_for_api
from flows.output import print_line
from flows.pipelines import PipelineKind
from flows.settings.load import SettingsError
from orchestrator_adapter import BuiltGraph, GraphError, MissingExtra, OperatorError, frozen_heap
from orchestrator_adapter.process import (
    RunOutcome,
    StopRequested,
    StopRequests,
    cause,
    end_process,
    run_pipeline,
)

_PREFECT_EXIT_S = 10.0  # Prefect's own threads send their last lines and events when the process ends

UNUSABLE = (SettingsError, GraphError, MissingExtra)


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
        "--duration", type=seconds, metavar="S", help="drain and stop after so many seconds (default: never)"
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="no live progress (it is shown only if standard error is a terminal)",
    )


def run_here(kind: PipelineKind, args: argparse.Namespace) -> int:
    """Run until the sources end or a signal comes. ``--help`` explains the exit codes."""
    return asyncio.run(_run_here(kind, args))


async def _run_here(kind: PipelineKind, args: argparse.Namespace) -> int:
    stop = StopRequests()
    with stop.listen():  # first of all: a signal during any step below ends the run with its report
        for name in args.early_signals:
            stop.request(name)
        try:
            settings = kind.load(args.config)
            if args.report is not None:
                settings = settings.model_copy(update={"report": args.report})
            pipeline = kind.pipeline(settings)
            pipeline.graph.validate()
        except UNUSABLE as error:
            return report_problems(kind.name, problems_of(error))
        api_url = None if args.no_api else os.environ.get("PREFECT_API_URL")
        try:
            if api_url and (why := await _wait_for_api(kind, api_url, args, stop)):
                problem = (
                    f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}; start it, or run with --no-api"
                )
                return report_problems(kind.name, [problem])
        except StopRequested:
            api_url = None  # there is no flow run yet, and none is made for a run that ends at once

        def finish(outcome: RunOutcome) -> None:
            print_line(summary(outcome, kind.outputs(settings)))

        log_as_json_lines()
        try:
            outcome = await perform(
                kind,
                settings,
                prefect=bool(api_url),
                duration_s=args.duration,
                quiet=args.quiet,
                stop=stop,
                on_forced_end=finish,
            )
        except (OSError, OperatorError) as error:  # raised before the graph starts
            return report_problems(kind.name, str(error).splitlines())
        if args.ends_process:
            patience_s = pipeline.policy.patience.total_seconds()
            end_process(outcome.exit_code, within_s=max(patience_s, _PREFECT_EXIT_S) if api_url else patience_s)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # Python restores the default at its exit: a late signal would replace the outcome's exit code.
                signal.signal(number, signal.SIG_IGN)
        finish(outcome)
        return outcome.exit_code


async def _wait_for_api(kind: PipelineKind, api_url: str, args: argparse.Namespace, stop: StopRequests) -> str | None:
    return await stop.unless_requested(
        "waiting for the Prefect API",
        lambda: wait_for_api(api_url, args.api_wait, _announce_wait(kind, api_url, args)),
    )


async def perform(
    kind: PipelineKind,
    settings: Any,
    *,
    prefect: bool,
    duration_s: float | None,
    quiet: bool,
    stop: StopRequests,
    on_forced_end: Callable[[RunOutcome], object],
    on_built: Callable[[BuiltGraph], object] | None = None,
) -> RunOutcome:
    """Run the pipeline here, as a Prefect flow or without Prefect. ``on_built`` gets the graph before it starts.

    ``stop`` has the requests to stop; ``on_forced_end`` is called if the process is ended because the loop does not turn.
    """
    progress = Progress(kind.name)

    def built(graph: BuiltGraph) -> None:
        if on_built is not None:
            on_built(graph)
        if not quiet and on_terminal():
            progress.attach(graph)
        if duration_s is not None:
            asyncio.get_running_loop().call_later(duration_s, graph.request_shutdown, f"ran for {duration_s:g} s")

    try:
        if not prefect:
            with frozen_heap():
                return await run_pipeline(
                    kind.pipeline_to_run(settings), on_built=built, stop=stop, on_forced_end=on_forced_end
                )
        # Imported here: Prefect takes a second.
        from prefect import tags  # noqa: PLC0415

        from orchestrator_adapter.prefect_flow import run_flow  # noqa: PLC0415

        flow = kind.load_flow()
        if not on_terminal():
            log_prefect_as_json_lines()
        with tags("sda", "streaming"):  # as in prefect.yaml
            return await run_flow(flow, settings, on_built=built, stop=stop, on_forced_end=on_forced_end)
    finally:
        await progress.close()


def summary(outcome: RunOutcome, outputs: Mapping[str, Path]) -> str:
    """How the run ended, for people: event, ledger, latency, restarts, problems and the places of the output."""
    event = outcome.event
    figures, why = event.figures, cause(event)
    latency = figures.latency
    lines = [
        f"{event.name} after {figures.elapsed_s:.1f} s{f': {why}' if why else ''} (exit code {outcome.exit_code})",
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


def problems_of(unusable: SettingsError | GraphError | MissingExtra) -> list[str]:
    """Each problem of settings or topology, as a sentence."""
    match unusable:
        case SettingsError(problems=problems):
            return problems
        case GraphError(problems=found):
            return [str(problem) for problem in found]
        case MissingExtra():
            return [str(unusable)]


def _announce_wait(kind: PipelineKind, api_url: str, args: argparse.Namespace) -> Callable[[str], None]:
    def say(why: str) -> None:
        text = f"waiting up to {args.api_wait:g} s for the Prefect API: {why}"
        announce(kind.name, "waiting_for_api", text, api_url=api_url, cause=why)

    return say
