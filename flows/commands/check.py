"""``python -m flows check``: validate settings and topology, and print the graph."""

from __future__ import annotations

import argparse

from flows.commands.messages import report_problems
from flows.commands.options import add_pipeline_argument, add_settings_argument
from flows.commands.running import UNUSABLE, problems_of
from flows.output import print_line
from flows.pipelines import PIPELINES
from orchestrator_adapter.process import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``check``."""
    add_pipeline_argument(parser)
    add_settings_argument(parser, *(kind.prefix for kind in PIPELINES.values()))
    parser.add_argument(
        "--mermaid", action="store_true", help="print the graph as a Mermaid flowchart instead of a table"
    )


def run(args: argparse.Namespace) -> int:
    """Print the graph, or every problem of settings and topology; then the exit code is 1."""
    kind = PIPELINES[args.pipeline]
    try:
        graph = kind.pipeline(kind.load(args.config)).graph
        graph.validate()
    except UNUSABLE as error:
        return report_problems(kind.name, problems_of(error))
    print_line(graph.to_mermaid() if args.mermaid else graph.describe())
    return ExitCode.OK
