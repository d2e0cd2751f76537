"""For tests of graphs: a manual clock, scripted sources and faults, one-call runs, and every schedule in virtual time."""

from orchestrator_adapter.testing.schedules import (
    Deadlock,
    LeakedTasks,
    LoopClock,
    OutOfTime,
    ScheduleFault,
    VirtualTimeLoop,
    run_every_schedule,
    run_schedule,
)
from orchestrator_adapter.testing.toolkit import (
    CollectSink,
    Fail,
    FailAt,
    ListSource,
    ManualClock,
    Pause,
    Step,
    UntilShutdown,
    chain,
    run_graph,
    settle,
    without_waiting,
)

LeftBehind = LeakedTasks  # the name until 0.1

__all__ = [
    "CollectSink",
    "Deadlock",
    "Fail",
    "FailAt",
    "LeakedTasks",
    "LeftBehind",
    "ListSource",
    "LoopClock",
    "ManualClock",
    "OutOfTime",
    "Pause",
    "ScheduleFault",
    "Step",
    "UntilShutdown",
    "VirtualTimeLoop",
    "chain",
    "run_every_schedule",
    "run_graph",
    "run_schedule",
    "settle",
    "without_waiting",
]
