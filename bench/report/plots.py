"""Plots of a run: time, memory and disk, and latency against n, both axes logarithmic."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from ..harness.measurement import BYTES, SECONDS, Measurement
from .growth import Growth, Key, growths, series
from .results import Results
from .units import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people can tell apart; the engine has one of its own.
_ENGINE = "#0072B2"
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#999933", "#882255", "#AAAAAA")
_MARKS = "osD^vP*X"
_OF_IMAGES = ("ingest", "identical", "near")  # tiers of images; that of vectors is "similar"
_WIDTH, _HEIGHT = 6.4, 4.9  # inches, of one panel with its legend
_DOTS = 110  # an inch

# One entry a file: its panels, each with title, unit, and the figure of a tier that it draws.
PLOTS: dict[str, tuple[str, list[tuple[str, str, tuple[str, str]]]]] = {
    "time": (
        "Time to take a set in",
        [
            ("images, until they can be looked up", SECONDS, ("ingest", "time")),
            ("vectors, until they are indexed", SECONDS, ("similar", "build")),
        ],
    ),
    "memory": (
        "Memory and disk",
        [
            ("anonymous memory, images, during the ingest", BYTES, ("ingest", "memory")),
            ("anonymous memory, vectors, during searches", BYTES, ("similar", "memory")),
            ("disk, images", BYTES, ("ingest", "disk")),
            ("disk, vectors and their index", BYTES, ("similar", "disk")),
        ],
    ),
    "latency": (
        "One lookup: median, and from the 5th to the 95th percentile",
        [
            ("identical, a hit", SECONDS, ("identical", "hit")),
            ("identical, a miss", SECONDS, ("identical", "miss")),
            ("near, a copy", SECONDS, ("near", "hit")),
            ("similar, a vector", SECONDS, ("similar", "single")),
        ],
    ),
}


def write(results: Results, folder: Path) -> dict[str, bytes]:
    """Write ``time.png``, ``memory.png`` and ``latency.png``, leaving out plots without any data.

    Returns the plots by name.
    """
    images = drawn(results)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    return images


def drawn(results: Results) -> dict[str, bytes]:
    """The plots by name, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every, grown = series(results), growths(results)
    numbers = _numbers(every, _OF_IMAGES) | _numbers(every, ("similar",))
    found = {}
    for name, (title, panels) in PLOTS.items():
        shown = [(panel, keys) for panel in panels if (keys := _keys(panel, every))]
        if not shown:
            continue
        across = min(2, len(shown))
        down = -(-len(shown) // across)
        figure = Figure((_WIDTH * across, _HEIGHT * down), dpi=_DOTS, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=13)
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for place, ((heading, unit, _), keys) in zip(axes, shown, strict=False):
            _draw(place, heading, unit, keys, every, grown, numbers)
        for place in axes[len(shown) :]:
            place.set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        found[name] = _smaller(file)
    return found


def _smaller(file: IO[bytes]) -> bytes:
    """The same plot with a palette: it has few colours, and a third of the bytes suffices."""
    smaller = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
            smaller, "PNG", optimize=True
        )
    return smaller.getvalue()


def _numbers(every: dict[Key, list[Measurement]], tiers: Sequence[str]) -> dict[str, int]:
    """A number for each method but the engine: its colour and mark in all plots of these tiers."""
    others = sorted({key[1] for key in every if key[0] in tiers} - {"engine"})
    return {method: number for number, method in enumerate(others)}


def _keys(
    panel: tuple[str, str, tuple[str, str]], every: dict[Key, list[Measurement]]
) -> list[Key]:
    keys = [
        key
        for key, measured in every.items()
        if (key[0], key[2]) == panel[2] and any(one.median > 0 for one in measured)
    ]
    return sorted(keys, key=lambda key: key[1] == "engine")  # drawn last, so on top


def _draw(
    place: Axes,
    heading: str,
    unit: str,
    keys: Sequence[Key],
    every: dict[Key, list[Measurement]],
    grown: dict[Key, Growth],
    numbers: dict[str, int],
) -> None:
    for key in keys:
        measured = [one for one in every[key] if one.median > 0]
        sizes = [one.n for one in measured]
        label = key[1].replace("$", r"\$")  # otherwise text between two of them is a formula
        growth = grown.get(key)
        if growth is not None:
            label += f"  $n^{{{growth.exponent:.2f}}}$"
        if key[1] == "engine":
            colour, width, mark = _ENGINE, 2.6, "o"
        else:
            number = numbers[key[1]]
            colour, width = _COLOURS[number % len(_COLOURS)], 1.4
            mark = _MARKS[(number + number // len(_COLOURS)) % len(_MARKS)]
        style: dict[str, Any] = {"color": colour, "linewidth": width, "marker": mark}
        place.plot(sizes, [one.median for one in measured], markersize=5, label=label, **style)
        if any(len(one.samples) > 1 for one in measured):
            low = [one.quantile(0.05) for one in measured]
            high = [one.quantile(0.95) for one in measured]
            place.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0)
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_title(heading, fontsize=11)
    place.set_xlabel("vectors" if keys[0][0] == "similar" else "images")
    place.yaxis.set_major_formatter(lambda value, _: _tick(value, unit))
    bottom, top = place.get_ylim()
    few = "25" if top < 30 * bottom else ""  # a short axis gets numbers between powers of ten too
    place.yaxis.set_minor_formatter(
        lambda value, _: _tick(value, unit) if few and f"{value:e}"[0] in few else ""
    )
    place.grid(visible=True, which="major", color="#dddddd", linewidth=0.7)
    place.spines[["top", "right"]].set_visible(False)
    handles, labels = place.get_legend_handles_labels()
    # Below the panel: inside, the legend of many peers would hide lines.
    place.legend(
        handles[::-1],  # the engine first, which is drawn last
        labels[::-1],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=3,
        fontsize=8.5,
        frameon=False,
    )


def _tick(value: float, unit: str) -> str:
    """A power of ten beside an axis: ``1 ms`` rather than ``1.00 ms``."""
    number, _, name = show(value, unit).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {name}"
