"""Evaluates encoders and baselines on the same pictures: copies, classes, what looks alike, captions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import cpu_count
from engine.errors import UsageError
from engine.evaluation.alike import Alike
from engine.evaluation.captions import Captions
from engine.evaluation.classes import Classes, ClassResult
from engine.evaluation.classify import check_installed
from engine.evaluation.copies import Copies, CopyResult
from engine.evaluation.distort import DISTORTIONS
from engine.evaluation.entrants import find_all
from engine.evaluation.labelled import TEST, TRAIN, Labelled, open_labelled
from engine.evaluation.pictures import Picture, Stream
from engine.evaluation.report import EncoderResult, EvalReport, EvalSettings
from engine.evaluation.report_files import fresh_folder, write_report
from engine.evaluation.timing import Timed
from engine.records import Rejection
from engine.sources.source_stream import Sources

Tick = Callable[[int, int | None], None]

_log = logging.getLogger("engine.evaluation")


def evaluate(
    encoders: Sequence[str],
    *,
    images: Sequence[str] = (),
    distractors: Sequence[str] = (),
    labels: tuple[str, str] | None = None,
    alike: str | None = None,
    captions: str | None = None,
    settings: EvalSettings | None = None,
    out: str | Path | None = None,
    progress: Tick | None = None,
) -> EvalReport:
    """Measure encoders and baselines on the same pictures.

    ``images`` measures how often a distorted copy finds its original among all images and
    ``distractors``. ``labels``, a source to learn from and a source to test, measures how well classes
    are separated. ``alike``, a source of labelled pictures, measures how often the nearest pictures have
    the label of the query. ``captions``, a source of pictures with captions, measures how often a
    caption finds its picture, with the encoders that have a text tower. ``out`` is a new or empty folder
    for the report as JSON, a plot of quality against speed, and sheets of the worst cases.
    Unreadable pictures are reported and left out.
    """
    settings = settings or EvalSettings()
    if not images and not labels and not alike and not captions:
        raise UsageError(
            "name images with images=, labelled pictures with labels= or alike=, or pictures with "
            "captions= of theirs, or several of them"
        )
    if distractors and not images:
        raise UsageError("distractors= go with images=: name images too")
    if labels:
        check_installed()
    folder = fresh_folder(Path(out)) if out is not None else None
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as pool:
        streams = Stream(images, pool), Stream(distractors, pool)
        labelled = None
        if labels:
            labelled = open_labelled(labels[0], TRAIN, pool), open_labelled(labels[1], TEST, pool)
        compared = open_labelled(alike, TEST, pool) if alike else None
        told = open_labelled(captions, TEST, pool) if captions else None
        entrants, absent = find_all(encoders, seed=settings.seed, device=settings.device)
        timed = [Timed(entrant) for entrant in entrants]
        tally = _Tally(progress, _total(images, distractors, labels, (alike, captions), settings))
        asked = _captions(told, timed, settings, tally) if told else None
        copies = _copies(streams, timed, settings, tally, pool) if images else None
        found = copies.run() if copies else []
        classes = _classes(labelled, timed, settings, tally) if labelled else None
        told_apart = classes.run() if classes else []
        seen = _alike(compared, timed, settings, tally) if compared else None
        looks_alike = seen.run() if seen else []
        by_text = asked.run() if asked else []
    report = EvalReport(
        settings=settings,
        engine_version=_version(),
        images=tuple(images),
        distractor_sources=tuple(distractors),
        labels=tuple(labels or ()),
        queries=copies.queries if copies else 0,
        unfit=copies.unfit if copies else 0,
        distractors=copies.distractors if copies else 0,
        left_out=copies.left_out if copies else 0,
        train=classes.train if classes else 0,
        test=classes.test if classes else 0,
        classes=classes.classes if classes else 0,
        shared=classes.shared if classes else 0,
        alike=alike or "",
        alike_pictures=seen.pictures if seen else 0,
        alike_queries=seen.queries if seen else 0,
        alike_classes=seen.classes if seen else 0,
        alike_by_chance=seen.chance if seen else None,
        **_caption_counts(captions or "", asked),
        results=_results(timed, found, told_apart, looks_alike, by_text),
        absent=tuple(absent),
        rejected=tuple(tally.rejected.values()),
        seconds=time.perf_counter() - began,
    )
    return report if folder is None else write_report(report, found, folder)


class _Tally:
    """Counts the pictures that are done, and collects the unreadable ones."""

    def __init__(self, progress: Tick | None, total: int | None) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self.rejected: dict[str, Rejection] = {}  # a picture may be tried more than once

    def reject(self, picture: Picture) -> None:
        if picture.name not in self.rejected:
            self.rejected[picture.name] = Rejection(picture.name, picture.reason)
            _log.debug("left out %s: %s", picture.name, picture.reason)

    def tick(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            total = self._total
            self._progress(self._done, total if total is None else max(total, self._done))


def _copies(
    streams: tuple[Stream, Stream],
    timed: Sequence[Timed],
    settings: EvalSettings,
    tally: _Tally,
    pool: Executor,
) -> Copies:
    _log.info("looking for copies with %s", ", ".join(each.entrant.name for each in timed))
    return Copies(
        *streams,
        timed,
        queries=settings.queries,
        seed=settings.seed,
        pool=pool,
        reject=tally.reject,
        tick=tally.tick,
    )


def _classes(
    labelled: tuple[Labelled, Labelled],
    timed: Sequence[Timed],
    settings: EvalSettings,
    tally: _Tally,
) -> Classes:
    _log.info("telling classes apart with %s", ", ".join(each.entrant.name for each in timed))
    return Classes(
        *labelled,
        timed,
        ks=settings.ks,
        most_train=settings.most_train,
        most_test=settings.most_test,
        seed=settings.seed,
        reject=tally.reject,
        tick=tally.tick,
    )


def _alike(
    labelled: Labelled, timed: Sequence[Timed], settings: EvalSettings, tally: _Tally
) -> Alike:
    _log.info("looking at neighbours with %s", ", ".join(each.entrant.name for each in timed))
    return Alike(
        labelled,
        timed,
        most=settings.most_test,
        seed=settings.seed,
        reject=tally.reject,
        tick=tally.tick,
    )


def _captions(
    labelled: Labelled, timed: Sequence[Timed], settings: EvalSettings, tally: _Tally
) -> Captions:
    return Captions(
        labelled,
        timed,
        most=settings.most_test,
        seed=settings.seed,
        reject=tally.reject,
        tick=tally.tick,
    )


def _caption_counts(source: str, asked: Captions | None) -> dict[str, Any]:
    """The fields of the report about captions."""
    return {
        "captions": source,
        "caption_pictures": asked.pictures if asked else 0,
        "caption_texts": asked.texts if asked else 0,
        "caption_left_out": asked.left_out if asked else 0,
        "captions_by_chance": _by_depth(asked.chance) if asked else {},
    }


def _by_depth(figures: dict[int, float]) -> dict[str, float]:
    return {str(depth): figure for depth, figure in figures.items()}


def _results(
    timed: Sequence[Timed],
    copies: Sequence[CopyResult],
    classes: Sequence[ClassResult],
    alike: Sequence[float],
    by_text: Sequence[dict[int, float]],
) -> tuple[EncoderResult, ...]:
    """One result per entrant. The measured figures are in the same order, or empty."""
    results = []
    for number, watch in enumerate(timed):
        entrant = watch.entrant
        result = EncoderResult(
            entrant.name,
            entrant.what,
            entrant.dim,
            images=watch.images,
            seconds=watch.seconds,
            images_per_second=watch.images / max(watch.seconds, 1e-9),
        )
        if copies:
            found = copies[number]
            result = replace(
                result,
                recall_at_1=found.recall_at_1,
                mean_recall_at_1=sum(found.recall_at_1.values()) / len(found.recall_at_1),
                micro_average_precision=found.micro_average_precision,
                worst=found.worst,
            )
        if classes:
            result = replace(
                result,
                knn={str(k): share for k, share in classes[number].knn.items()},
                probe=classes[number].probe,
                probe_strength=classes[number].strength,
            )
        if alike:
            result = replace(result, looks_alike=alike[number])
        if by_text:
            result = replace(result, text_recall=_by_depth(by_text[number]))
        results.append(result)
    return tuple(results)


def _total(
    images: Sequence[str],
    distractors: Sequence[str],
    labels: tuple[str, str] | None,
    others: tuple[str | None, ...],
    settings: EvalSettings,
) -> int | None:
    """About how many pictures will be encoded, for the progress; None if only reading would show it."""
    total = 0
    if images:
        count = Sources(images).count()
        more = Sources(distractors).count() if distractors else 0
        if count is None or more is None:
            return None
        total = count + more + min(count, settings.queries) * len(DISTORTIONS)
    total += settings.most_test * sum(1 for each in others if each)
    return total + (settings.most_train + settings.most_test if labels else 0)


def _version() -> str:
    # Imported late, because the top package imports every other.
    from engine import __version__

    return __version__
