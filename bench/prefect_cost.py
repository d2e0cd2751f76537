"""What reporting to a real Prefect server costs: start, many restarts, throughput, hooks, a killed server.

It prints figures and asserts nothing. The server runs on this machine and shares its cores, as with ``make up``. Ratios of
figures with and without it come from runs that alternate in one process: medians, with the range.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os

from bench.prefect_load import bench_hooks, bench_idle, bench_slices, bench_throughput
from bench.prefect_restarts import bench_restart_latency, bench_restarts, bench_start, restart_often
from bench.prefect_scene import PATIENT, a_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, to see that it works")
    parser.add_argument("--only", default="abcde", help="letters of the measurements (default: abcde)")
    parser.add_argument("--restarts", type=int, help="of (b) (default: 1000)")
    parser.add_argument("--rounds", type=int, help="rounds of (c) (default: 8)")
    parser.add_argument("--trace", action="store_true", help="in (b), the lines that hold what has grown (tracemalloc)")
    parser.add_argument(
        "--recorder-batch",
        type=int,
        default=100,
        help="task runs that the server records together (default: 100, as `make up` sets it; Prefect's own: 1)",
    )
    parser.add_argument("--child", choices=["plain", "prefect"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    quick = args.quick
    restarts = args.restarts or (200 if quick else 1_000)
    logging.getLogger("orchestrator_adapter").setLevel(logging.ERROR)
    logging.getLogger("orchestrator_adapter.supervisor").setLevel(logging.CRITICAL)
    if args.child is not None:
        asyncio.run(restart_often(restarts, reporting=PATIENT if args.child == "prefect" else None, trace=args.trace))
        return
    with a_server(args.recorder_batch) as server:
        print(f"cores: {os.cpu_count()}, shared by the pipeline, the Prefect server and all other processes")
        if "a" in args.only:
            asyncio.run(bench_start(3 if quick else 7))
        if "b" in args.only:
            bench_restarts(server, restarts, trace=args.trace)
        if "c" in args.only:
            asyncio.run(bench_throughput(args.rounds or (2 if quick else 8), seconds=1.0 if quick else 3.0))
            asyncio.run(bench_slices(4 if quick else 40, seconds=2.0))
        if "d" in args.only:
            bench_hooks(2_000 if quick else 20_000)
            asyncio.run(bench_idle(30.0 if quick else 60.0))
        if "e" in args.only:
            asyncio.run(bench_restart_latency(server, 1 if quick else 5, restarts=50 if quick else 200))


if __name__ == "__main__":
    main()
