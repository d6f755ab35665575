"""The report of an evaluation, as dataclasses and as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.encoders.session import check_device
from engine.errors import UsageError
from engine.evaluation.alike import NEIGHBOURS
from engine.evaluation.entrants import AbsentEntrant
from engine.records import Rejection


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """The settings of an evaluation; ``UsageError`` names the first invalid one."""

    queries: int = 500  # the most pictures to make copies of
    ks: tuple[int, ...] = (20, 200)  # numbers of neighbours that vote
    most_train: int = 20_000  # the most labelled pictures to learn from
    most_test: int = 5_000  # the most labelled pictures to test, and to compare
    seed: int = 0
    device: str = "auto"  # where encoders run: "cpu", "cuda", or "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        for name in ("queries", "most_train", "most_test"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}= is {getattr(self, name)}: it must be at least 1")
        if not self.ks or min(self.ks) < 1:
            raise UsageError("ks= must be whole numbers of 1 or more, such as 20,200")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}: it must be 0 to 2^63 - 1")


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A copy whose original was not the nearest picture, with both scores."""

    query: str
    distortion: str
    found: str
    found_score: float  # cosine
    right_score: float


@dataclass(frozen=True, slots=True)
class EncoderResult:
    """The results of one entrant; figures that were not measured are empty or None."""

    name: str
    what: str
    dim: int
    recall_at_1: dict[str, float] = field(default_factory=dict)  # by distortion
    mean_recall_at_1: float | None = None
    micro_average_precision: float | None = None
    knn: dict[str, float] = field(default_factory=dict)  # accuracy by k
    probe: float | None = None  # accuracy
    probe_strength: float | None = None
    looks_alike: float | None = None  # the share of the three nearest that have the same label
    text_recall: dict[str, float] = field(default_factory=dict)  # by depth; texts with captions
    images: int = 0  # encoded
    seconds: float = 0.0  # of encoding
    images_per_second: float = 0.0
    worst: tuple[WorstCase, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The whole report: settings, counts of pictures, and results in the order of the encoders."""

    settings: EvalSettings
    engine_version: str
    images: tuple[str, ...]
    distractor_sources: tuple[str, ...]
    labels: tuple[str, ...]
    queries: int  # pictures that were distorted in every way
    unfit: int  # drawn pictures that are too small, too flat, or near copies of other queries
    distractors: int
    left_out: int  # near copies of a query, which would be right answers too
    train: int
    test: int
    classes: int
    shared: int  # test pictures that are also among the training pictures
    alike: str  # the source of the pictures that were compared
    alike_pictures: int
    alike_queries: int  # those of them whose label enough others have
    alike_classes: int
    alike_by_chance: float | None  # what vectors that say nothing would reach
    captions: str  # the source of the pictures that were looked up by their captions
    caption_pictures: int
    caption_texts: int  # different captions
    caption_left_out: int  # pictures without a caption
    captions_by_chance: dict[str, float]  # by depth
    results: tuple[EncoderResult, ...]
    absent: tuple[AbsentEntrant, ...]
    rejected: tuple[Rejection, ...]
    seconds: float
    files: tuple[str, ...] = ()  # written into ``out``


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of quality, from 0 to 1. ``of`` takes it from a result; None if it was not measured."""

    name: str
    what: str
    of: Callable[[EncoderResult], float | None]


MEASURES = (
    Measure("copies", "copies found first (recall@1)", lambda result: result.mean_recall_at_1),
    Measure(
        "alike", f"same label among the {NEIGHBOURS} nearest", lambda result: result.looks_alike
    ),
    Measure(
        "texts", "pictures found by caption (recall@1)", lambda result: result.text_recall.get("1")
    ),
    Measure(
        "kNN", "classes named by neighbours", lambda result: max(result.knn.values(), default=None)
    ),
    Measure("probe", "classes named by a linear probe", lambda result: result.probe),
)
"""What the summary and the plot show beside the speed."""


def text(report: EvalReport) -> str:
    """The report as tables, with a row per encoder."""
    parts = []
    if report.queries:
        names = list(report.results[0].recall_at_1)
        rows = [["recall@1", *names, "mean", "µAP"]]
        rows += [
            [
                result.name,
                *(_share(result.recall_at_1[name]) for name in names),
                _share(result.mean_recall_at_1),
                _share(result.micro_average_precision),
            ]
            for result in report.results
        ]
        parts += _aligned(rows)
        parts.append(
            f"{report.queries:,} pictures, each copied in every way and searched among them and "
            f"{report.distractors:,} distractors"
        )
        if report.left_out or report.unfit:
            parts.append(
                f"left out: {report.left_out:,} near copies of queries; not used as queries: "
                f"{report.unfit:,} too small, too flat or near copies"
            )
        parts.append("")
    if report.test:
        ks = list(report.results[0].knn)
        rows = [["accuracy", *(f"kNN {k}" for k in ks), "linear probe"]]
        rows += [
            [result.name, *(_share(result.knn[k]) for k in ks), _share(result.probe)]
            for result in report.results
        ]
        parts += _aligned(rows)
        parts.append(
            f"{report.classes:,} classes, {report.train:,} pictures to learn from, {report.test:,} "
            f"to test"
        )
        if report.shared:
            parts.append(
                f"{report.shared:,} of the test pictures are also training pictures, which makes all "
                f"results look better"
            )
        parts.append("")
    if report.alike_queries:
        parts += [
            f"looks alike: the share of the {NEIGHBOURS} nearest that have a picture's label; "
            f"{_share(report.alike_by_chance)} by chance",
            f"{report.alike_classes:,} labels, {report.alike_queries:,} pictures compared with "
            f"{report.alike_pictures:,}",
            "",
        ]
    if report.caption_texts:
        parts += _captions(report)
    measures = measured(report)
    rows = [["", *(one.name for one in measures), "numbers", "images", "images/s", "what"]]
    rows += [
        [
            result.name,
            *(_share(one.of(result)) for one in measures),
            f"{result.dim:,}",
            f"{result.images:,}",
            f"{result.images_per_second:,.0f}",
            result.what,
        ]
        for result in report.results
    ]
    parts += _aligned(rows)
    parts += [f"{each.name} is left out: {each.reason}" for each in report.absent]
    parts += [f"wrote {path}" for path in report.files]
    return "\n".join(parts)


def measured(report: EvalReport) -> list[Measure]:
    """The measures that at least one entrant has."""
    return [one for one in MEASURES if any(one.of(each) is not None for each in report.results)]


def _captions(report: EvalReport) -> list[str]:
    depths = list(report.captions_by_chance)
    rows = [["text → image", *(f"recall@{depth}" for depth in depths)]]
    rows += [
        [result.name, *(_share(result.text_recall.get(depth)) for depth in depths)]
        for result in report.results
    ]
    rows.append(["by chance", *(_share(report.captions_by_chance[depth]) for depth in depths)])
    parts = _aligned(rows)
    parts.append(
        f"{report.caption_texts:,} captions, each searched among {report.caption_pictures:,} pictures"
    )
    if report.caption_left_out:
        parts.append(f"left out: {report.caption_left_out:,} pictures without a caption")
    return [*parts, ""]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: the first column left, numbers right, a last column of text as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = len(rows[0]) > 1 and rows[0][-1] == "what"
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(wide) for cell, wide in zip(row[1:], widths[1:], strict=True)]
        if words:
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return lines
