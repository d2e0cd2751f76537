"""Handlers for the tests. Each runs in a worker process and does what its calls ask for."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator_adapter.bulkhead import Arrays, Bulkhead
from orchestrator_adapter.supervision.restart import RestartPolicy

TOY = f"{__name__}:Toy"
PLENTY = RestartPolicy.bounded(50, timedelta(minutes=5), backoff=None)


class Toy:
    """Doubles arrays, stores what it is sent to share, and fails on demand."""

    def __init__(self) -> None:
        self.shared: dict[str, Arrays] = {}

    def share(self, key: str, arrays: Arrays) -> None:
        if key == "unwelcome":
            raise ValueError("not this one")
        self.shared[key] = arrays

    def handle(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        match method:
            case "double":
                return {name: array * 2 for name, array in arrays.items()}
            case "echo":
                return dict(arrays)
            case "recall":
                return dict(self.shared.get("table", {}))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once" | "hang once":  # the file exists from the second time on
                first = Path(text(arrays["path"]))
                if not first.exists():
                    first.touch()
                    return self.handle(method.removesuffix(" once"), arrays)
                return {"survived": np.array([True])}
            case "hang":
                time.sleep(3600)
            case "wait for":
                path = Path(text(arrays["path"]))
                while not path.exists():
                    time.sleep(0.001)
                return {}
            case "raise":
                raise LookupError("no such object: 25544")
            case "bad answer":
                return {"text": np.array(["text"])}
            case "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                return {"pid": np.array([os.getpid()])}
            case _:
                raise AssertionError(method)
        raise AssertionError("the process should have ended")


class NeverReady:
    def __init__(self) -> None:
        raise RuntimeError("no library for that")


def numbers(*values: float) -> dict[str, NDArray[Any]]:
    return {"x": np.array(values)}


def at(path: Path) -> dict[str, NDArray[Any]]:
    """A path as an array, since calls consist of arrays."""
    return {"path": np.frombuffer(str(path).encode(), np.uint8)}


def text(array: NDArray[Any]) -> str:
    return array.tobytes().decode()


def bulkhead(name: str = "toy", target: str = TOY, **options: Any) -> Bulkhead:
    """A bulkhead with limits that no test reaches unintentionally."""
    return Bulkhead(name, target, **{"answer_within": timedelta(seconds=60), "rebuilds": PLENTY, **options})
