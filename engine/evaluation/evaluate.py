"""The evaluation of encoders beside baselines: wires the parts and writes what they found."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from engine.config import cpu_count
from engine.errors import EngineError, UsageError
from engine.evaluation import worst_cases
from engine.evaluation.classes import Classes
from engine.evaluation.classify import check_installed
from engine.evaluation.copies import Copies, CopyResult
from engine.evaluation.distort import DISTORTIONS
from engine.evaluation.entrants import find_all
from engine.evaluation.labelled import TEST, TRAIN, open_labelled
from engine.evaluation.pictures import Picture, Stream
from engine.evaluation.report import EncoderResult, EvalReport, EvalSettings
from engine.evaluation.timing import Timed
from engine.records import Rejection
from engine.sources.locate import Sources
from engine.storage.durable import make_folders, replace_file

REPORT = "eval.json"

Tick = Callable[[int, int | None], None]

__all__ = ["EvalReport", "EvalSettings", "evaluate"]


def evaluate(
    encoders: Sequence[str],
    *,
    images: Sequence[str] = (),
    distractors: Sequence[str] = (),
    labels: tuple[str, str] | None = None,
    settings: EvalSettings | None = None,
    out: str | Path | None = None,
    progress: Tick | None = None,
) -> EvalReport:
    """Measure encoders and baselines on the same pictures.

    With ``images``, how often a distorted copy of one finds it again, among the rest of them and
    ``distractors``; with ``labels`` (a source to learn from and one to test), how well classes are told
    apart. ``out`` is a new or empty folder for the report as JSON and sheets of the worst cases.
    Pictures that cannot be read are reported and left out.
    """
    settings = settings or EvalSettings()
    if not images and not labels:
        raise UsageError("name images with --images, or labelled ones with --labels, or both")
    if distractors and not images:
        raise UsageError("distractors go with queries: name these with --images")
    if labels:
        check_installed()
    folder = _fresh_folder(Path(out)) if out is not None else None
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as pool:
        streams = Stream(images, pool), Stream(distractors, pool)
        sets = None
        if labels:
            sets = open_labelled(labels[0], TRAIN, pool), open_labelled(labels[1], TEST, pool)
        entrants, absent = find_all(encoders, seed=settings.seed)
        timed = [Timed(entrant) for entrant in entrants]
        rejected: dict[str, Rejection] = {}  # a picture may be tried more than once
        done = 0
        total = _total(images, distractors, labels, settings)

        def reject(picture: Picture) -> None:
            rejected.setdefault(picture.name, Rejection(picture.name, picture.reason))

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total if total is None else max(total, done))

        copies = classes = None
        found: list[CopyResult] = []
        results = [EncoderResult(entrant.name, entrant.what, entrant.dim) for entrant in entrants]
        if images:
            copies = Copies(
                *streams,
                timed,
                queries=settings.queries,
                seed=settings.seed,
                pool=pool,
                reject=reject,
                tick=tick,
            )
            found = copies.run()
            results = [
                replace(
                    result,
                    recall_at_1=each.recall_at_1,
                    mean_recall_at_1=sum(each.recall_at_1.values()) / len(each.recall_at_1),
                    micro_average_precision=each.micro_average_precision,
                    worst=each.worst,
                )
                for result, each in zip(results, found, strict=True)
            ]
        if sets:
            classes = Classes(
                *sets,
                timed,
                ks=settings.ks,
                most_train=settings.most_train,
                most_test=settings.most_test,
                seed=settings.seed,
                reject=reject,
                tick=tick,
            )
            results = [
                replace(
                    result,
                    knn={str(k): share for k, share in each.knn.items()},
                    probe=each.probe,
                    probe_strength=each.strength,
                )
                for result, each in zip(results, classes.run(), strict=True)
            ]
    results = [
        replace(
            result,
            images=watch.images,
            seconds=watch.seconds,
            images_per_second=watch.images / max(watch.seconds, 1e-9),
        )
        for result, watch in zip(results, timed, strict=True)
    ]
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
        results=tuple(results),
        absent=tuple(absent),
        rejected=tuple(rejected.values()),
        seconds=time.perf_counter() - began,
    )
    return report if folder is None else _written(report, found, folder)


def _total(
    images: Sequence[str],
    distractors: Sequence[str],
    labels: tuple[str, str] | None,
    settings: EvalSettings,
) -> int | None:
    """Pictures that will be encoded, about, for the progress; None where only reading would tell."""
    total = 0
    if images:
        count = Sources(images).count()
        more = Sources(distractors).count() if distractors else 0
        if count is None or more is None:
            return None
        total = count + more + min(count, settings.queries) * len(DISTORTIONS)
    return total + (settings.most_train + settings.most_test if labels else 0)


def _fresh_folder(folder: Path) -> Path:
    try:
        make_folders(folder)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name a new folder with --out")
    except OSError as error:
        raise UsageError(f"{folder} cannot be made a folder: {error.strerror}") from None
    return folder


def _written(report: EvalReport, found: Sequence[CopyResult], folder: Path) -> EvalReport:
    """Write sheets and report; returns it with the names of the files."""
    files: list[str] = []
    try:
        for number, each in enumerate(found):
            if not each.rows:
                continue
            name = report.results[number].name
            path = folder / f"worst-{number + 1}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80]}.png"
            data = io.BytesIO()
            worst_cases.draw(f"{name}: the worst of {report.queries:,} queries", each.rows).save(
                data, "PNG"
            )
            replace_file(path, data.getvalue())
            files.append(str(path))
        report = replace(report, files=(*files, str(folder / REPORT)))
        body = json.dumps(asdict(report), indent=2) + "\n"
        replace_file(folder / REPORT, body.encode())
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be written ({error.strerror}): make room there, or choose another"
        ) from None
    return report


def _version() -> str:
    from engine import __version__  # late: the package's front imports every room

    return __version__
