"""Other packages that screen catalogues, side by side: time, and the share of the true close approaches that each finds.

They are installed from the package index into a Python environment of their own, outside the project. The true approaches are
the union of all lists, without those that SGP4 itself does not confirm: a minimum of the distance within a second of the
listed time, at most the miss distance. Approaches below 10 m/s are left out: each package treats them in another way.

- astroz (Zig; MIT): bounds the motion between samples; all against all, on every core.
- kessler-toolkit (Python): samples every 60 s, and looks for a minimum where a sample is within max(5 D, 50 km); one object
  against all. It is run for a few objects, and its share is of their approaches.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from bench.screening.runs import Run
from sda_ops.astro.propagation import one_thread
from sda_ops.screening.exact import exact_states
from sda_ops.screening.geometry.screen import screen
from sda_ops.screening.objects import ScreenedObjects

FOLDER = Path(tempfile.gettempdir()) / "sda-screening-peers"
PACKAGES = ("astroz==0.17.0", "kessler-toolkit==0.1.1")
ASTROZ_STEPS_MIN = (1.0, 0.5)
KESSLER_ASSETS = 4
SAME_NS = 1_000_000_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What one package lists, and how long it took.

    Attributes:
        first: Rows.
        second: Rows.
        tca_ns: UTC.
        wall_s: Wall time.
        cpu_s: CPU time of all threads.
        only: The rows of the objects that were screened against all; empty for all against all.
    """

    first: Integers
    second: Integers
    tca_ns: Integers
    wall_s: float
    cpu_s: float
    only: tuple[int, ...] = ()


def table(run: Run, rounds: int, folder: Path) -> None:
    """Print a row for each package. The lists of the last round are compared."""
    objects = run.prepared()
    problems = _environment(folder)
    for problem in problems:
        print(f"  {problem}")
    python = folder / "bin" / "python"
    rng = np.random.default_rng(run.seed)
    assets = tuple(np.sort(rng.choice(len(objects), min(KESSLER_ASSETS, len(objects)), replace=False)).tolist())
    results: dict[str, list[Found]] = {}
    with tempfile.TemporaryDirectory() as name:
        catalog = Path(name) / "catalog.json"
        catalog.write_text(json.dumps(_messages(objects), separators=(",", ":")))
        for number in range(rounds):
            cases = list(_cases(run, python, catalog, assets, problems))
            for case, each in cases[:: -1 if number % 2 else 1]:
                print(f"… {case}", file=sys.stderr, flush=True)
                found = _ours(run) if each is None else _peer(python, catalog, run, each)
                if found is not None:
                    results.setdefault(case, []).append(found)
    _print(objects, run, results)


def _cases(
    run: Run, python: Path, catalog: Path, assets: tuple[int, ...], problems: list[str]
) -> Iterator[tuple[str, tuple[str, object] | None]]:
    yield "this project", None
    if not any("astroz" in problem for problem in problems):
        for step_min in ASTROZ_STEPS_MIN:
            yield f"astroz, step {step_min:g} min", ("astroz", step_min)
    if not any("kessler" in problem for problem in problems):
        yield f"kessler-toolkit, {len(assets)} objects against all", ("kessler", list(assets))


def _print(objects: ScreenedObjects, run: Run, results: dict[str, list[Found]]) -> None:
    confirmed = {name: _confirmed(objects, run, found[-1]) for name, found in results.items()}
    truth: dict[tuple[int, int], list[int]] = {}
    for events, _ in confirmed.values():
        for pair, times_ns in events.items():
            known = truth.setdefault(pair, [])
            known += [t for t in times_ns if all(abs(t - other) > SAME_NS for other in known)]
    reference = results["this project"]
    print(
        f"  {len(objects):,} objects, {run.hours:g} h, {run.miss_m / 1e3:g} km; {sum(map(len, truth.values())):,} true approaches "
        "at 10 m/s and more"
    )
    for name, found in results.items():
        events, invented = confirmed[name]
        only = set(found[-1].only)
        wanted = {pair: times for pair, times in truth.items() if not only or only & set(pair)}
        total = sum(map(len, wanted.values()))
        hits = sum(any(abs(t - o) <= SAME_NS for o in events.get(pair, [])) for pair, ts in wanted.items() for t in ts)
        ratios = [one.cpu_s / other.cpu_s for one, other in zip(found, reference, strict=False)]
        walls = [one.wall_s / other.wall_s for one, other in zip(found, reference, strict=False)]
        print(
            f"  {name:42} CPU {median(f.cpu_s for f in found):7.2f} s ({median(ratios):.2f} times ours), wall "
            f"{median(f.wall_s for f in found):7.2f} s ({median(walls):.2f} times ours); found {hits:,} of {total:,} "
            f"({100.0 * hits / max(1, total):.2f} %), not confirmed {invented}"
        )
        if only:
            print(
                f"  {'':42} all against all takes {len(objects) / len(only) / 2:,.0f} times as long (computed, not measured)"
            )
    sys.stdout.flush()


def _confirmed(objects: ScreenedObjects, run: Run, found: Found) -> tuple[dict[tuple[int, int], list[int]], int]:
    """The approaches that SGP4 confirms, by pair; and how many it does not confirm."""
    tca_ns = found.tca_ns.copy()
    for _ in range(2):
        d_m, w_m_s = _relative(objects, found, tca_ns)
        square = np.einsum("nc,nc->n", w_m_s, w_m_s)
        step_s = -np.einsum("nc,nc->n", d_m, w_m_s) / np.where(square > 0.0, square, np.inf)
        tca_ns += np.rint(np.clip(step_s, -1.0, 1.0) * 1e9).astype(np.int64)
    d_m, w_m_s = _relative(objects, found, tca_ns)
    fast = np.linalg.norm(w_m_s, axis=1) >= 10.0
    inside = (tca_ns >= run.start_ns) & (tca_ns < run.start_ns + round(run.hours * 3600e9))
    true = (np.abs(tca_ns - found.tca_ns) <= SAME_NS) & (np.linalg.norm(d_m, axis=1) <= run.miss_m + 1e-3)
    events: dict[tuple[int, int], list[int]] = {}
    for one, other, time_ns in zip(
        *(each[fast & true & inside].tolist() for each in (found.first, found.second, tca_ns)), strict=True
    ):
        pair = (min(one, other), max(one, other))
        times_ns = events.setdefault(pair, [])
        if all(abs(time_ns - each) > SAME_NS for each in times_ns):
            times_ns.append(time_ns)
    return events, int((fast & ~true & inside).sum())


def _relative(
    objects: ScreenedObjects, found: Found, tca_ns: Integers
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    one, other = (exact_states(objects.satrecs, rows.astype(np.intp), tca_ns) for rows in (found.first, found.second))
    return other.r_teme_m - one.r_teme_m, other.v_teme_m_s - one.v_teme_m_s


def _ours(run: Run) -> Found:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_screened, run).result()


def _screened(run: Run) -> Found:
    one_thread()
    objects = run.prepared()
    _ = objects.satrecs
    screen(replace(run, objects=300).prepared(), run.start_ns, timedelta(minutes=20), run.miss_m, options=run.options)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    found = screen(objects, run.start_ns, timedelta(hours=run.hours), run.miss_m, options=run.options).approaches
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Found(found.first, found.second, found.tca_ns, wall_s, cpu_s)


def _peer(python: Path, catalog: Path, run: Run, case: tuple[str, object]) -> Found | None:
    output = catalog.with_suffix(".npz")
    request = {
        "catalog": str(catalog),
        "start": datetime.fromtimestamp(run.start_ns / 1e9, UTC).isoformat(),
        "hours": run.hours,
        "miss_km": run.miss_m / 1e3,
        "package": case[0],
        "option": case[1],
        "output": str(output),
    }
    done = subprocess.run(
        [str(python), "-c", _SCRIPT, json.dumps(request)], capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode != 0:
        print(f"  {case[0]} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
        return None
    arrays = np.load(output)
    only = tuple(case[1]) if isinstance(case[1], list) else ()
    return Found(
        arrays["i"].astype(np.int64),
        arrays["j"].astype(np.int64),
        run.start_ns + np.rint(arrays["t_s"] * 1e9).astype(np.int64),
        float(arrays["wall_s"]),
        float(arrays["cpu_s"]),
        only,
    )


def _environment(folder: Path) -> list[str]:
    """Make the environment if it is absent; what could not be installed."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    problems = []
    for package in PACKAGES:
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            problems.append(
                f"{package} could not be installed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
    return problems


def _messages(objects: ScreenedObjects) -> list[dict[str, object]]:
    """The objects as OMMs in JSON; the catalogue number is the row, counted from 1. Names are left out: astroz takes a JSON
    text with '1 ' and '2 ' in it for TLEs."""
    columns = objects.columns
    per_day = columns.no_kozai * 720.0 / np.pi
    angles_deg = {
        "INCLINATION": columns.inclo,
        "RA_OF_ASC_NODE": columns.nodeo,
        "ARG_OF_PERICENTER": columns.argpo,
        "MEAN_ANOMALY": columns.mo,
    }
    return [
        {
            "OBJECT_NAME": "X",
            "OBJECT_ID": "2000-001A",
            "EPOCH": str(np.datetime64(int(columns.epoch_ns[row]), "ns").astype("datetime64[us]")),
            "MEAN_MOTION": float(per_day[row]),
            "ECCENTRICITY": float(columns.ecco[row]),
            **{name: float(np.rad2deg(column[row])) % 360.0 for name, column in angles_deg.items()},
            "EPHEMERIS_TYPE": 0,
            "CLASSIFICATION_TYPE": "U",
            "NORAD_CAT_ID": row + 1,
            "ELEMENT_SET_NO": 999,
            "REV_AT_EPOCH": 1,
            "BSTAR": float(columns.bstar[row]),
            "MEAN_MOTION_DOT": 0.0,
            "MEAN_MOTION_DDOT": 0.0,
        }
        for row in range(len(objects))
    ]


_SCRIPT = """
import json, sys, time
from datetime import datetime
import numpy as np
request = json.loads(sys.argv[1])
start = datetime.fromisoformat(request["start"])
text = open(request["catalog"]).read()
if request["package"] == "astroz":
    import astroz
    constellation = astroz.Constellation(text)
    astroz.screen(constellation, 2.0, threshold=request["miss_km"], step=request["option"], start_time=start)
    wall, cpu = time.perf_counter(), time.process_time()
    found = astroz.screen(
        constellation, request["hours"] * 60.0, threshold=request["miss_km"], step=request["option"], start_time=start
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    number = np.array(constellation.satnums)
    i, j, t = number[found.i] - 1, number[found.j] - 1, found.time * 60.0
else:
    from kessler_toolkit.screening import screen
    catalog = json.loads(text)
    i, j, t = [], [], []
    wall, cpu = time.perf_counter(), time.process_time()
    for row in request["option"]:
        _, hits = screen(catalog[row], catalog, start, request["hours"], threshold_km=request["miss_km"])
        for hit in hits:
            i.append(row); j.append(int(hit.norad_id) - 1); t.append((hit.tca - start).total_seconds())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
np.savez(request["output"], i=np.array(i, dtype=np.int64), j=np.array(j, dtype=np.int64), t_s=np.array(t, dtype=float),
         wall_s=wall, cpu_s=cpu)
"""
