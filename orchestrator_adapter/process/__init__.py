"""Run one graph as a process: signals, report on disk, exit code. Knows nothing of Prefect."""

from orchestrator_adapter.process.ending import end_process
from orchestrator_adapter.process.notices import Notice, NoticeBoard
from orchestrator_adapter.process.pipeline import Pipeline, RunOutcome, run_pipeline
from orchestrator_adapter.process.report import ExitCode, cause, exit_code, write_report
from orchestrator_adapter.process.signals import ForcedEnd, stop_on_signals
from orchestrator_adapter.process.stop_requests import StopRequested, StopRequests

__all__ = [
    "ExitCode",
    "ForcedEnd",
    "Notice",
    "NoticeBoard",
    "Pipeline",
    "RunOutcome",
    "StopRequested",
    "StopRequests",
    "cause",
    "end_process",
    "exit_code",
    "run_pipeline",
    "stop_on_signals",
    "write_report",
]
