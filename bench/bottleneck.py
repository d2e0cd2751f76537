"""The share of random graphs in which the rule marks the right bottlenecks. ``docs/bottleneck.md`` explains the figures.

The graphs run in virtual time on the real runtime; what limits them is computed by the bottleneck law, without the run
(``tests.scenes.queueing``). It prints figures and asserts nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tests.helpers.bottlenecks import NetworkKind, Trial, trial


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=100, help="how many of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    kinds = [kind.name.lower() for kind in NetworkKind]
    parser.add_argument("--kind", choices=kinds, help="only this kind")
    options = parser.parse_args(arguments)
    for kind in NetworkKind:
        if options.kind in (None, kind.name.lower()):
            _report(kind, range(options.seed, options.seed + options.graphs))


def _report(kind: NetworkKind, seeds: range) -> None:
    right = limited = marked = 0
    for seed in seeds:
        result = trial(seed, kind)
        right += result.is_right
        limited += result.truth.is_limited
        marked += bool(result.marked)
        if not result.is_right:
            _explain(result)
    print(
        f"{kind.name.lower()}: {right} of {len(seeds)} right ({right / len(seeds):.0%}); an operator limits {limited}, "
        f"and {marked} have a mark. Graphs {kind.value}, seeds {seeds.start} to {seeds.stop - 1}.",
        flush=True,
    )


def _explain(result: Trial) -> None:
    print(
        f"  seed {result.seed}: must {_names(result.truth.must)}, may {_names(result.truth.may)}; marked:", flush=True
    )
    for it in result.marked:
        print(f"    {it.operator}: {it.reason}")


def _names(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"


if __name__ == "__main__":
    main()
