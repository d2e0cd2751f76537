"""Run one graph as a process: signals, report on disk, exit code. Knows nothing of Prefect."""

from orchestrator_adapter.process.pipeline import Pipeline, RunOutcome, run_pipeline
from orchestrator_adapter.process.report import ExitCode, cause, exit_code, write_report
from orchestrator_adapter.process.signals import stop_on_signals

__all__ = [
    "ExitCode",
    "Pipeline",
    "RunOutcome",
    "cause",
    "exit_code",
    "run_pipeline",
    "stop_on_signals",
    "write_report",
]
