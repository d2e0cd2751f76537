"""What a history of element sets costs: CPU time per 20-second interval of the ``propagate`` operator. It only prints figures.

Usage: ``python -m bench.catalog_history [--engine sgp4|auto] [--rounds N]``. The catalogue is the real one of March 2026, with
one set of each object, with a second one of a single object, and with five of each, a day apart. Cases take turns; ratios are
medians of the rounds' ratios to the first case. CPU time is of this process, which propagates inline in one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from statistics import median
from typing import get_args

import msgspec
import numpy as np

from bench.cost import counting_sink
from orchestrator_adapter import source_of
from orchestrator_adapter.testing import chain, run_graph
from sda_ops.astro.propagation import Engine
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S
from sda_ops.catalog import ElementColumns
from sda_ops.propagation.interval import STEP_NS
from sda_ops.propagation.operator import Prediction, propagate
from sda_ops.propagation.pool import InlinePropagator
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.records.observation import Observation
from tests.scenes.operators import beacons
from tests.scenes.tracks import FixedCatalog
from tests.scenes.truth import REAL_EPOCH_NS, catalog

INTERVALS = 90  # half an hour: three choices of element sets
START_NS = (REAL_EPOCH_NS - NS_PER_DAY) // STEP_NS * STEP_NS


def with_history(columns: ElementColumns, sets: int, objects: int) -> ElementColumns:
    """The catalogue, and ``sets - 1`` earlier sets of the first ``objects``, each some 0.8 to 1.2 days before the last."""
    rng = np.random.default_rng(0)
    parts = [columns.arrays()]
    for number in range(1, sets):
        part = {name: column[:objects].copy() for name, column in columns.arrays().items()}
        days = rng.uniform(0.8, 1.2, objects) * number
        part["jdsatepoch"] -= np.floor(days)
        part["jdsatepochF"] -= days % 1.0
        part["sgp4_epoch_days"] -= days
        parts.append(part)
    return ElementColumns.from_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def cpu_s(columns: ElementColumns, engine: Engine, observations: list[Observation]) -> float:
    """Of a graph that propagates the catalogue to these observations."""
    operator = propagate(FixedCatalog(columns), InlinePropagator(engine=engine), Prediction(errors=ElementSetErrors()))
    started = time.process_time()
    asyncio.run(run_graph(chain(source_of(observations), operator, counting_sink())))
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--engine", choices=get_args(Engine), default="sgp4")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the inline propagator stalls the loop, which the runtime logs
    element_sets, which = catalog()
    columns = ElementColumns.of(element_sets)
    cases = {
        "one set of each object": columns,
        "two sets of one object": with_history(columns, 2, 1),
        "five sets of each object": with_history(columns, 5, len(columns)),
    }
    (template,) = beacons([0.0])
    times_ns = [START_NS + index * STEP_NS + NS_PER_S for index in range(INTERVALS)]
    observations = [_at(template, time_ns) for time_ns in times_ns]
    costs: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, case in cases.items():
            whole = cpu_s(case, args.engine, observations)
            costs[name].append((whole - cpu_s(case, args.engine, observations[:1])) / (INTERVALS - 1) * 1e3)
    print(f"{which}, engine {args.engine}, {args.rounds} rounds, CPU ms per interval")
    (first, *_) = costs
    for name, figures in costs.items():
        ratios = [figure / base for figure, base in zip(figures, costs[first], strict=True)]
        print(f"  {name:26}{median(figures):7.1f}   ratio {median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")


def _at(observation: Observation, timestamp_ns: int) -> Observation:
    return msgspec.structs.replace(observation, sensor_timestamp=timestamp_ns)


if __name__ == "__main__":
    main()
