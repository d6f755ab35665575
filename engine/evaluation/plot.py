"""Draws the quality of entrants against their speed, with matplotlib."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import how_to_install
from engine.evaluation.report import EncoderResult, EvalReport, Measure, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger("engine.evaluation")
_PANEL = (5.2, 4.0)  # inches
_DPI = 120
_ROOM = 2.0  # the factor of speed that is free left and right of all points
_LINE = 0.055  # of the height, between two labels
_MAX_NAME = 32  # characters
_FRONT, _BEHIND = "#1f5fa8", "#8a8f98"


def draw(report: EvalReport) -> bytes | None:
    """A PNG file with a panel for each measure; None if nothing was measured, or without matplotlib.

    An entrant is on the front if no other one is both faster and better.
    """
    measures = measured(report)
    if not measures:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        _log.warning("the plot is left out: it needs %s: %s", error.name, how_to_install("eval"))
        return None
    # Without pyplot, which keeps figures and settings for the whole process.
    figure = Figure(figsize=(_PANEL[0] * len(measures), _PANEL[1]), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for number, measure in enumerate(measures, 1):
        _panel(figure.add_subplot(1, len(measures), number), measure, report.results)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _panel(axes: Axes, measure: Measure, results: Sequence[EncoderResult]) -> None:
    points = [
        (max(result.images_per_second, 1e-3), quality, result.name)
        for result in results
        if (quality := measure.of(result)) is not None
    ]
    front = _front(points)
    axes.set_xscale("log")
    axes.set_title(measure.what, fontsize=10, loc="left")
    axes.set_xlabel("images per second")
    speeds = [speed for speed, _, _ in points]
    axes.set_xlim(min(speeds) / _ROOM, max(speeds) * _ROOM)
    best = max(quality for _, quality, _ in points)
    axes.set_ylim(0, max(best * 1.12, 0.05))
    axes.grid(True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    steps = sorted(points[number][:2] for number in front)
    axes.plot(*zip(*steps, strict=True), color=_FRONT, linewidth=1, alpha=0.4)
    for number, (speed, quality, _) in enumerate(points):
        colour = _FRONT if number in front else _BEHIND
        axes.plot([speed], [quality], "o", color=colour, markersize=6)
    middle = (min(speeds) * max(speeds)) ** 0.5
    gap = _LINE * axes.get_ylim()[1]
    # Labels of one side that would overlap move up.
    for right in (False, True):
        lowest = -1.0
        mine = [n for n, (speed, _, _) in enumerate(points) if (speed > middle) == right]
        for number in sorted(mine, key=lambda n: points[n][1]):
            speed, quality, name = points[number]
            lowest = max(quality, lowest + gap)
            axes.annotate(
                f"{name[:_MAX_NAME]} {quality:.2f}",
                (speed, lowest),
                xytext=(-8 if right else 8, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                fontsize=8,
                color=_FRONT if number in front else _BEHIND,
                parse_math=False,
            )


def _front(points: Sequence[tuple[float, float, str]]) -> set[int]:
    """The numbers of the points that no other point beats in speed and quality."""
    return {
        number
        for number, (speed, quality, _) in enumerate(points)
        if not any(
            other_speed >= speed
            and other_quality >= quality
            and (other_speed, other_quality) != (speed, quality)
            for other_speed, other_quality, _ in points
        )
    }
