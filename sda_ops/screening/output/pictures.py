"""Pictures of conjunctions: miss distance over time, the encounter plane, and how estimates of an event changed.

Matplotlib (extra ``plot``) is imported when the first picture is drawn. The format follows the file's suffix: SVG, PNG or PDF.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator_adapter import MissingExtra
from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import ScreenedObjects

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GREEN, _GREY = "#1f5fa8", "#c0392b", "#2e7d4f", "#7a7a7a"
_STEP_S = 10.0
"""Between the points of a curve: a fast pair moves 150 km in it, which is 1/300 of the orbit."""

_FINER = 20
_MINIMUM_NS = 1_000_000

_ZOOM = 6.0
_LONGEST_ZOOM_S = 120.0
"""The zoomed curve ends where the distance is about so many times the miss, or after this time, before and after."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encounter:
    """One conjunction, as the pictures show it.

    Attributes:
        tca_ns: Time of closest approach, UTC.
        relative_position_m: ``(3,)``, second minus first, in the first's radial, in-track, cross-track.
        relative_velocity_m_s: ``(3,)``, in the same axes.
        radius_first_m: The first's size.
        radius_second_m: The second's size.
        max_probability: The greatest probability of a collision over all sizes of the error.
        dilution_m: The standard deviation along the miss vector at which it is greatest.
        aspect_ratio: The error along the miss vector by that across it.
    """

    tca_ns: int
    relative_position_m: Floats
    relative_velocity_m_s: Floats
    radius_first_m: float
    radius_second_m: float
    max_probability: float
    dilution_m: float
    aspect_ratio: float

    @classmethod
    def of(cls, conjunctions: Conjunctions, index: int) -> Encounter:
        """One of several conjunctions."""
        return cls(
            tca_ns=int(conjunctions.tca_ns[index]),
            relative_position_m=conjunctions.relative_position_m[index],
            relative_velocity_m_s=conjunctions.relative_velocity_m_s[index],
            radius_first_m=float(conjunctions.radius_first_m[index]),
            radius_second_m=float(conjunctions.radius_second_m[index]),
            max_probability=float(conjunctions.max_probability[index]),
            dilution_m=float(conjunctions.dilution_m[index]),
            aspect_ratio=float(conjunctions.aspect_ratio[index]),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairDistance:
    """The distance of two objects over time.

    Attributes:
        at_ns: ``(n,)``, UTC, rising; denser around each minimum.
        distance_m: ``(n,)``; NaN where SGP4 has no position.
        minima: Indices of the minima inside, to a millisecond.
    """

    at_ns: Nanoseconds
    distance_m: Floats
    minima: npt.NDArray[np.intp]


def require_matplotlib() -> None:
    """Raise ``MissingExtra`` without matplotlib. Call it before a long computation whose result is drawn."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra, imported when it is used
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtra("pictures need matplotlib: pip install 'sda-stream-orchestrator[plot]'") from error


def pair_distance(
    objects: ScreenedObjects, first: int, second: int, *, start_ns: int, end_ns: int, step_s: float = _STEP_S
) -> PairDistance:
    """The distance of two rows of ``objects`` from ``start_ns`` to ``end_ns``, by SGP4 itself, every ``step_s`` seconds.

    Around each minimum the steps become a twentieth, again and again, until they are below a millisecond: a fast pair is
    100 km apart one step before its closest approach.
    """
    step_ns = round(step_s * NS_PER_S)
    at_ns = np.arange(start_ns, end_ns, step_ns, dtype=np.int64)
    distance_m = _distances_m(objects, first, second, at_ns)
    inner = distance_m[1:-1]
    closest_ns = at_ns[1:-1][(inner < distance_m[:-2]) & (inner <= distance_m[2:])]
    while step_ns > _MINIMUM_NS and len(closest_ns):
        finer_ns = step_ns // _FINER
        around_ns = closest_ns[:, np.newaxis] + np.arange(-_FINER, _FINER + 1) * finer_ns
        around_m = _distances_m(objects, first, second, around_ns.ravel()).reshape(around_ns.shape)
        closest_ns = around_ns[np.arange(len(closest_ns)), np.nanargmin(around_m, axis=1)]
        at_ns, places = np.unique(np.concatenate((at_ns, around_ns.ravel())), return_index=True)
        distance_m = np.concatenate((distance_m, around_m.ravel()))[places]
        step_ns = finer_ns
    return PairDistance(at_ns=at_ns, distance_m=distance_m, minima=np.searchsorted(at_ns, closest_ns))


def _distances_m(objects: ScreenedObjects, first: int, second: int, at_ns: Nanoseconds) -> Floats:
    count = len(at_ns)
    rows = np.repeat(np.array([first, second], dtype=np.intp), count)
    states = exact_states(objects.satrecs, rows, np.tile(at_ns, 2))
    distance_m: Floats = np.linalg.norm(states.r_teme_m[count:] - states.r_teme_m[:count], axis=1)
    distance_m[states.failed[:count] | states.failed[count:]] = np.nan
    return distance_m


def encounter_plane(encounter: Encounter) -> tuple[Floats, Floats]:
    """The axes of the encounter plane, which is normal to the relative velocity, in radial, in-track, cross-track.

    The second axis is as near to the radial direction as the plane allows; to in-track, where the relative velocity is radial.
    The first, the second and the relative velocity are right-handed.
    """
    speed = float(np.linalg.norm(encounter.relative_velocity_m_s))
    along = encounter.relative_velocity_m_s / speed if speed > 0.0 else np.array([0.0, 1.0, 0.0])
    near = np.array([1.0, 0.0, 0.0]) if abs(along[0]) < _NEARLY_RADIAL else np.array([0.0, 1.0, 0.0])
    up = near - along * float(near @ along)
    up /= np.linalg.norm(up)
    return np.cross(up, along), up


_NEARLY_RADIAL = 0.9


def pair_picture(
    objects: ScreenedObjects,
    first: int,
    second: int,
    encounter: Encounter | None,
    *,
    start_ns: int,
    end_ns: int,
    miss_distance_m: float,
    file_format: str,
) -> bytes:
    """Miss distance over the horizon, a zoom around the closest approach, and the encounter plane, as a file's content.

    ``encounter`` is the conjunction to zoom on. Without one the picture shows the smallest distance of the horizon instead, and
    no encounter plane. ``file_format`` is ``svg``, ``png`` or ``pdf``. Raises ``MissingExtra`` without matplotlib.
    """
    whole = pair_distance(objects, first, second, start_ns=start_ns, end_ns=end_ns)
    names = _label(objects, first), _label(objects, second)
    figure = _figure(12.0, 8.5 if encounter is not None else 4.8)
    figure.suptitle(f"{names[0]}   and   {names[1]}", fontsize=14, fontweight="bold")
    if encounter is None:
        _draw_horizon(figure.subplots(), whole, None, miss_distance_m)
        figure.supxlabel(_no_encounter(whole, miss_distance_m), fontsize=11)
        return _saved(figure, file_format)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.0, 1.35))
    _draw_horizon(figure.add_subplot(grid[0, :]), whole, encounter, miss_distance_m)
    _draw_zoom(figure.add_subplot(grid[1, 0]), objects, (first, second), encounter, (start_ns, end_ns))
    _draw_plane(figure.add_subplot(grid[1, 1]), encounter, names)
    return _saved(figure, file_format)


def history_picture(
    *,
    title: str,
    estimated_ns: Nanoseconds,
    miss_m: Floats,
    max_probability: Floats,
    tca_ns: int,
    probability: Floats | None = None,
    file_format: str = "svg",
) -> bytes:
    """How the estimates of one event changed: miss distance and maximum probability, as a file's content.

    ``estimated_ns`` (rising), ``miss_m``, ``max_probability`` and ``probability`` (NaN where there is no covariance) have one
    value for each estimate; ``tca_ns`` is the time of closest approach of the last one. Raises ``MissingExtra`` without matplotlib.
    """
    figure = _figure(10.0, 6.5)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    upper, lower = figure.subplots(2, 1, sharex=True)
    times = _times(estimated_ns)
    upper.plot(times, miss_m / M_PER_KM, "o-", color=_BLUE, label="miss distance")
    upper.set_ylabel("miss distance (km)")
    upper.set_ylim(0.0, 1.2 * max(float(miss_m.max()), 1.0) / M_PER_KM)
    last = _datetime(int(estimated_ns[-1]))
    _label_last(upper, last, float(miss_m[-1]) / M_PER_KM, f"{_km(float(miss_m[-1]))}")
    lower.plot(times, max_probability, "o-", color=_RED, label="maximum probability (Alfano)")
    if probability is not None and np.isfinite(probability).any():
        lower.plot(times, probability, "s--", color=_GREEN, label="probability (Foster)")
    lower.set_yscale("log")
    shown = np.concatenate((max_probability, [] if probability is None else probability))
    shown = shown[shown > 0.0]  # NaN and 0 have no place on a logarithmic axis
    if len(shown):
        lower.set_ylim(
            shown.min() / 5.0, shown.max() * 5.0
        )  # without limits, estimates that hardly differ fill the axis
    lower.set_ylabel("probability of a collision")
    _label_last(lower, last, float(max_probability[-1]), f"{max_probability[-1]:.2E}")
    lower.set_xlabel("time of the estimate (UTC)")
    for axes in (upper, lower):
        axes.axvline(_datetime(tca_ns), color=_GREY, linestyle=":", label=f"closest approach {_clock(tca_ns, 0)}")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize=9)
    _time_axis(lower)
    return _saved(figure, file_format)


_LINEAR = 50.0
"""Distances within this factor of each other have a linear axis: on a logarithmic one they would have no round labels."""


def _draw_horizon(axes: Axes, whole: PairDistance, encounter: Encounter | None, miss_distance_m: float) -> None:
    times = _times(whole.at_ns)
    axes.plot(times, whole.distance_m / M_PER_KM, color=_BLUE, linewidth=0.9, label="distance (SGP4)")
    if len(whole.minima):
        axes.plot(
            times[whole.minima],
            whole.distance_m[whole.minima] / M_PER_KM,
            "o",
            color=_BLUE,
            markersize=3.5,
            label="its minima",
        )
    axes.axhline(
        miss_distance_m / M_PER_KM,
        color=_GREY,
        linestyle="--",
        linewidth=1.0,
        label=f"miss distance of the screening: {_km(miss_distance_m)}",
    )
    if encounter is not None:
        miss_m = float(np.linalg.norm(encounter.relative_position_m))
        axes.plot(
            _times(np.array([encounter.tca_ns])),
            [miss_m / M_PER_KM],
            "D",
            color=_RED,
            markersize=7,
            label=f"closest approach: {_km(miss_m)} at {_clock(encounter.tca_ns, 3)} UTC",
        )
    shown_m = np.append(whole.distance_m[np.isfinite(whole.distance_m)], miss_distance_m)
    if 0.0 < shown_m.min() < shown_m.max() / _LINEAR:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=-0.02 * shown_m.max() / M_PER_KM)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_ylabel("distance (km)")
    axes.set_title("Distance over the horizon", loc="left", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, fontsize=9, columnspacing=1.2, frameon=False)
    axes.margins(x=0.01)
    _time_axis(axes)


def _draw_zoom(
    axes: Axes, objects: ScreenedObjects, pair: tuple[int, int], encounter: Encounter, window: tuple[int, int]
) -> None:
    speed_m_s = float(np.linalg.norm(encounter.relative_velocity_m_s))
    miss_m = float(np.linalg.norm(encounter.relative_position_m))
    half_s = float(np.clip(_ZOOM * miss_m / speed_m_s, 0.01, _LONGEST_ZOOM_S)) if speed_m_s > 0.0 else _LONGEST_ZOOM_S
    half_ns = round(half_s * NS_PER_S)
    start_ns, end_ns = encounter.tca_ns - half_ns, encounter.tca_ns + half_ns + 1
    near = pair_distance(objects, *pair, start_ns=start_ns, end_ns=end_ns, step_s=half_s / 200.0)
    scale, unit = _scale(float(np.nanmax(near.distance_m, initial=miss_m)))
    ticks_per_s, time_unit = (1.0, "seconds") if half_s >= 1.0 else (1_000.0, "milliseconds")
    axes.plot((near.at_ns - encounter.tca_ns) / NS_PER_S * ticks_per_s, near.distance_m / scale, color=_BLUE)
    axes.plot([0.0], [miss_m / scale], "D", color=_RED, markersize=7)
    text = f"{_km(miss_m)}\nat a relative speed of\n{speed_m_s / M_PER_KM:.3f} km/s"
    axes.text(0.5, 0.95, text, transform=axes.transAxes, ha="center", va="top", fontsize=10)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"{time_unit} from {_clock(encounter.tca_ns, 3)} UTC")
    axes.set_ylabel(f"distance ({unit})")
    axes.set_title("Around the closest approach", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    for edge_ns in window:
        if abs(edge_ns - encounter.tca_ns) < half_ns:
            axes.axvline((edge_ns - encounter.tca_ns) / NS_PER_S * ticks_per_s, color=_GREY, linestyle=":")


def _draw_plane(axes: Axes, encounter: Encounter, names: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra, imported when it is used
    from matplotlib.patches import Circle, Ellipse, Patch  # noqa: PLC0415 - the same

    across, up = encounter_plane(encounter)
    x_m, y_m = float(encounter.relative_position_m @ across), float(encounter.relative_position_m @ up)
    miss_m = float(np.hypot(x_m, y_m))
    radius_m = encounter.radius_first_m + encounter.radius_second_m
    sigma_m = encounter.dilution_m if np.isfinite(encounter.dilution_m) and miss_m > 0.0 else 0.0
    # What is drawn reaches from the disc around the first object to three standard deviations beyond the second.
    reach_m = 1.1 * (miss_m / 2.0 + max(radius_m, 3.0 * sigma_m))
    scale, unit = _scale(reach_m)
    toward = np.array([x_m, y_m]) / miss_m if miss_m > 0.0 else np.zeros(2)
    end = np.array([x_m, y_m]) / scale
    for count, alpha in ((3, 0.10), (2, 0.14), (1, 0.20)) if sigma_m > 0.0 else ():
        length = 2.0 * count * sigma_m / scale
        width, angle = length / encounter.aspect_ratio, float(np.degrees(np.arctan2(y_m, x_m)))
        axes.add_patch(
            Ellipse((end[0], end[1]), length, width, angle=angle, facecolor=_RED, edgecolor="none", alpha=alpha)
        )
        label = end + toward * (count - 0.25) * sigma_m / scale
        axes.text(label[0], label[1], f"{count}σ", fontsize=8, color=_RED, ha="center", va="center")
    axes.add_patch(Circle((0.0, 0.0), radius_m / scale, facecolor=_BLUE, edgecolor="none", alpha=0.75))
    axes.plot([0.0], [0.0], "+", color=_BLUE, markersize=14)
    axes.annotate("", (end[0], end[1]), (0.0, 0.0), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.3})
    axes.set_xlim(end[0] / 2.0 - reach_m / scale, end[0] / 2.0 + reach_m / scale)
    axes.set_ylim(end[1] / 2.0 - reach_m / scale, end[1] / 2.0 + reach_m / scale)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{_direction(across)} ({unit})")
    axes.set_ylabel(f"{_direction(up)} ({unit})")
    axes.set_title("Encounter plane, normal to the relative velocity", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    r, i, c = encounter.relative_position_m
    error = (
        f"assumed error of {names[1]}, 1σ to 3σ ({_km(sigma_m)} along the miss):\n"
        f"the size with the greatest probability of a collision, {encounter.max_probability:.2E}"
        if sigma_m > 0.0
        else f"greatest probability of a collision: {encounter.max_probability:.3G}"
    )
    sizes = f"{encounter.radius_first_m:g} m + {encounter.radius_second_m:g} m"
    handles = {
        f"{names[0]}, disc with the sum of both radii: {sizes}": Patch(color=_BLUE, alpha=0.75),
        f"miss to {names[1]}: {_km(miss_m)}\n(radial {r:+,.1f}, in-track {i:+,.1f}, cross-track {c:+,.1f} m)": Line2D(
            [], [], color="black", marker=">"
        ),
        error: Patch(color=_RED, alpha=0.3),
    }
    axes.legend(
        list(handles.values()),
        list(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        fontsize=9,
        frameon=False,
    )


def _scale(largest_m: float) -> tuple[float, str]:
    return (M_PER_KM, "km") if largest_m >= M_PER_KM else (1.0, "m")


def _direction(axis: Floats) -> str:
    """An axis of the encounter plane in words: its parts in radial, in-track and cross-track."""
    shown = [
        (value, name)
        for value, name in zip(axis.tolist(), ("radial", "in-track", "cross-track"), strict=True)
        if abs(value) >= _SMALLEST_PART
    ]
    if len(shown) == 1 and shown[0][0] > 0.0:
        return shown[0][1]
    text = "".join(f" {'−' if value < 0.0 else '+'} {abs(value):.2f} {name}" for value, name in shown)
    return text.removeprefix(" + ").strip()


_SMALLEST_PART = 0.05
"""A smaller part of a unit vector is not shown: 0.1 % of its length."""


def _no_encounter(whole: PairDistance, miss_distance_m: float) -> str:
    if not np.isfinite(whole.distance_m).any():
        return "SGP4 has no position of the pair in this time."
    index = int(np.nanargmin(whole.distance_m))
    smallest_m = float(whole.distance_m[index])
    smallest = f"The smallest distance is {_km(smallest_m)} at {_clock(int(whole.at_ns[index]), 0)} UTC."
    if smallest_m > miss_distance_m:
        return f"No approach within {_km(miss_distance_m)} in this time. {smallest}"
    return f"{smallest} The objects move slowly against each other, or were not screened: no encounter plane."


def _figure(width: float, height: float) -> Figure:
    """A new figure, without a window. Raises ``MissingExtra``."""
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, imported when it is used

    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, file_format: str) -> bytes:
    from matplotlib import rc_context  # noqa: PLC0415 - an extra, imported when it is used

    file = BytesIO()
    with rc_context({"svg.hashsalt": "conjunction"}):  # the same picture is the same file
        figure.savefig(file, format=file_format, dpi=110, metadata={"Date": None} if file_format == "svg" else None)
    return file.getvalue()


def _time_axis(axes: Axes) -> None:
    from matplotlib import dates  # noqa: PLC0415 - an extra, imported when it is used

    untyped: Any = dates
    locator = untyped.AutoDateLocator(tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator, tz=UTC))


def _label_last(axes: Axes, at: datetime, value: float, text: str) -> None:
    axes.annotate(text, (at, value), textcoords="offset points", xytext=(6, 6), fontsize=9)


def _label(objects: ScreenedObjects, row: int) -> str:
    number = int(objects.columns.catalog_number[row])
    return f"{objects.names[row]} ({number})" if objects.names[row] else f"object {number}"


def _times(at_ns: Nanoseconds) -> npt.NDArray[np.datetime64]:
    return at_ns.astype("datetime64[ns]")


def _datetime(at_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns / 1_000)


def _clock(at_ns: int, digits: int) -> str:
    unit = 10 ** (9 - digits)
    rounded = (at_ns + unit // 2) // unit * unit
    text = f"{_datetime(rounded):%Y-%m-%d %H:%M:%S.%f}"
    return text[:-7] if digits == 0 else text[: len(text) - 6 + digits]


def _km(distance_m: float) -> str:
    return f"{distance_m / M_PER_KM:.3f} km" if distance_m >= M_PER_KM else f"{distance_m:.1f} m"
