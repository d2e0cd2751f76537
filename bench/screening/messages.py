"""What conjunction messages cost: CPU time to make, write and read them, in both notations. It only prints figures.

Usage: ``python -m bench.screening.messages [--messages N] [--rounds N]``. The conjunctions are CelesTrak's 20 of the highest
probability, repeated. CPU time is of this process, one thread; files are written to a temporary folder. The least of the
rounds is printed: other load on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sda_ops.screening.output.messages import message_files, messages_of
from sda_ops.wire.cdm import read_cdm
from tests.scenes.conjunctions import CREATED_NS, AssessedScene, socrates_scene


def cpu_s(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def cases(scene: AssessedScene, count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name: the sum of everything until the name's last step."""
    indices = np.arange(count) % len(scene.conjunctions)

    def messages() -> list[object]:
        made = messages_of(
            scene.objects,
            scene.conjunctions,
            indices,
            screening=scene.screening,
            originator="SDA",
            creation_date_ns=CREATED_NS,
        )
        return list(made)

    def files(notation: str) -> None:
        for number, (name, text) in enumerate(message_files(messages(), notation)):  # type: ignore[arg-type] # given below
            (folder / f"{number}-{name}").write_text(text, encoding="utf-8")

    texts = {notation: next(iter(message_files(scene.messages([0]), notation)))[1] for notation in ("kvn", "xml")}
    return {
        "messages": messages,
        "messages, KVN, files": lambda: files("kvn"),
        "messages, XML, files": lambda: files("xml"),
        "reading KVN": lambda: [read_cdm(texts["kvn"]) for _ in range(count)],
        "reading XML": lambda: [read_cdm(texts["xml"]) for _ in range(count)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    scene = socrates_scene()
    with tempfile.TemporaryDirectory() as folder:
        by_name = cases(scene, args.messages, Path(folder))
        rounds = [{name: cpu_s(call) for name, call in by_name.items()} for _ in range(args.rounds)]
    for name in by_name:
        each_s = min(figures[name] for figures in rounds) / args.messages
        print(f"{name:24} {each_s * 1e3:6.3f} ms of CPU each, {each_s * 26_000:5.1f} s for 26,000")


if __name__ == "__main__":
    main()
