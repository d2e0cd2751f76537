"""What the ``risk`` operator costs: processor time for one correlation, and for one mark.

``python -m bench.risk [--objects 14683] [--rate 50000] [--seconds 120] [--conjunctions 200]``. No graph: the assessor
alone, with batches of 256 in the order of arrival, up to 0.1 s after the measurement, and a mark every second that is 30 s behind, as with an archive.
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
from uuid import UUID

from sda_ops.alerts.risk.assessor import AssessorLimits, RiskAssessor
from sda_ops.alerts.risk.evidence import EvidenceLimits
from sda_ops.records.correlation import Correlation
from tests.scenes.risks import EPOCH_NS, START_NS, S, near, screened

_BATCH = 256
_DELAY_NS = S // 10  # as a radar's


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=14_683, help="objects that are observed")
    parser.add_argument("--rate", type=int, default=50_000, help="correlations in a second of event time")
    parser.add_argument("--seconds", type=int, default=120, help="of event time")
    parser.add_argument("--conjunctions", type=int, default=200, help="conjunctions that are watched")
    parser.add_argument("--behind", type=int, default=30, help="how far the mark is behind, seconds")
    parser.add_argument("--memory", action="store_true", help="measure the memory (slower)")
    options = parser.parse_args()
    rng = random.Random(1)
    limits = AssessorLimits(
        evidence=EvidenceLimits(
            gap_ns=2 * S, longest_ns=30 * S, allowed_lateness_ns=5 * S, max_held=100_000_000, max_totals=50_000
        )
    )
    assessor = RiskAssessor(limits, near)
    pairs = [rng.sample(range(options.objects), 2) for _ in range(options.conjunctions)]
    assessor.add([screened((min(pair), max(pair)), name=str(n)) for n, pair in enumerate(pairs)])
    references = [f"{number}@{EPOCH_NS}" for number in range(options.objects)]
    adding = marking = worst = 0.0
    statements = held = 0
    if options.memory:
        tracemalloc.start()
    for second in range(options.seconds):
        batch = [_correlation(rng, second, references) for _ in range(options.rate)]
        batch.sort(key=lambda each: each.ingest_timestamp)
        began = time.process_time()
        for at in range(0, len(batch), _BATCH):
            statements += len(assessor.add(batch[at : at + _BATCH]))
        added = time.process_time()
        statements += len(assessor.advance(START_NS + (second - options.behind) * S))
        marked = time.process_time()
        adding, marking = adding + added - began, marking + marked - added
        worst, held = max(worst, marked - added), max(held, assessor.evidence.windows.held)
    total = options.rate * options.seconds
    print(
        f"{options.objects} objects, {options.conjunctions} conjunctions, {total} correlations, {statements} statements"
    )
    print(f"adding: {adding / total * 1e6:.2f} us each; closing and releasing: {marking / total * 1e6:.2f} us each")
    print(f"share of one core at {options.rate}/s: {(adding + marking) / options.seconds:.0%}")
    print(
        f"a mark: {marking / options.seconds * 1e3:.1f} ms on average, {worst * 1e3:.1f} ms at most; {held} held at most"
    )
    if options.memory:
        print(f"memory: {tracemalloc.get_traced_memory()[0] / 2**20:.0f} MiB")


def _correlation(rng: random.Random, second: int, references: list[str]) -> Correlation:
    number = int(rng.random() * len(references))
    time_ns = START_NS + second * S + int(rng.random() * S)
    return Correlation(
        UUID(int=rng.getrandbits(128)),
        "radar-1",
        "radar",
        time_ns,
        time_ns + int(rng.random() * _DELAY_NS),
        time_ns,
        "correlated",
        catalog_number=number,
        reference_orbit_id=references[number],
        mahalanobis_squared=rng.random(),
        components=3,
    )


if __name__ == "__main__":
    main()
