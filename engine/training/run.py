"""Runs a training from its sources to the exported encoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from engine.config import cpu_count
from engine.encoders import registry
from engine.errors import TrainingError, UsageError
from engine.training.batches import Batches
from engine.training.checkpoint import CHECKPOINT, Provenance, engine_version, load_checkpoint
from engine.training.export import export
from engine.training.loop import TrainingLoop
from engine.training.malloc_pages import kept_pages
from engine.training.model import SimCLR, build
from engine.training.report import Reporter, TrainProgress, TrainReport
from engine.training.resume import check_settings, restore, saved_run
from engine.training.run_folder import check_fresh, locked, make_folder, write_errors
from engine.training.run_sources import check_sources
from engine.training.saving import Saver
from engine.training.scoring import Scorer
from engine.training.settings import TrainSettings
from engine.training.teacher import (
    Teacher,
    TeacherVectors,
    check_teacher,
    remove_vectors,
    vectors_of,
)
from engine.training.trainer import Trainer, memory_errors
from engine.training.training_set import TrainingSet, read_training_set

LOGS = "logs"
MAX_TEACHER_SIDE = 512  # pixels; larger pictures would take disk and time, and show hardly more

_log = logging.getLogger("engine.training")


def train(
    sources: Sequence[str],
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    name: str | None = None,
    description: str = "",
    licence: str = "",
    init: str | Path | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainReport:
    """Train an encoder on the images of ``sources`` and write it into the folder ``out``.

    ``name`` (default: the folder's name), ``description`` (of the images and their licence) and
    ``licence`` (of the weights) become part of the encoder. Unreadable images are skipped and reported.
    The exported network is the best on the held-out images, or the last if nothing is held out. Once
    ``stop()`` is true, the run abandons its current step and ends; it can be resumed.

    ``init`` is an encoder, by name or folder, whose weights replace the random ones at the start. Its
    widths must be those of the settings.

    ``teacher`` is another encoder, whose vectors the network learns to follow, see ``teacher_weight``.
    Its vectors lie in ``out`` until the training ends: 2 bytes a dimension and image. So a resumed run
    needs no teacher, unless they are gone. A teacher that has changed is refused.

    ``resume`` continues the run in ``out``. Its settings are the default, and ``epochs`` may be larger.
    On the CPU the result is that of a run that never stopped. ``cache`` is a folder that keeps the
    decoded images for the next run. Raises ``UsageError`` for other settings or other images, and
    ``TrainingError`` if the run cannot continue.
    """
    folder = Path(out)
    before = saved_run(folder) if resume else None
    settings = settings or (before.settings if before else TrainSettings())
    device = _device(settings.device)
    if before:
        check_settings(before.settings, settings, folder)
        if init is not None:
            raise UsageError(
                f"the training in {folder} has its weights already: leave out init= or resume="
            )
        check_teacher(before.data.get("teacher"), teacher, folder)
    first = _first_weights(init, settings) if init is not None else None
    check_sources(sources)
    make_folder(folder)
    run = _Run(settings, folder, device, Reporter(progress), stop or _never)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        if not before:
            check_fresh(folder)
        taught_by = teacher.described() if teacher else None
        if before and before.data.get("teacher"):
            # The path may be another one now.
            taught_by = before.data["teacher"]
        cached = Path(cache) if cache is not None else None
        training_set = run.read(sources, cached, stack, _side_for(taught_by))
        stack.enter_context(write_errors(folder))
        stack.enter_context(memory_errors(device))
        earlier = before.data if before else {}
        provenance = Provenance(
            name=name or (before.name if before else folder.resolve().name),
            settings=settings,
            epoch=0,
            loss=None,
            data=training_set.described(
                description or earlier.get("description", ""),
                first[1].name if first else earlier.get("init", ""),
                taught_by,
            ),
            engine_version=engine_version(),
            licence=licence or (before.licence if before else ""),
        )
        network = first[0] if first else build(settings)
        vectors = run.teach(training_set, taught_by, teacher) if taught_by else None
        return run.train(
            training_set, network, provenance, stack, vectors, resume=before is not None
        )


class _Run:
    """The state that all parts of one run share."""

    def __init__(
        self,
        settings: TrainSettings,
        folder: Path,
        device: torch.device,
        reporter: Reporter,
        stop: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._device = device
        self._reporter = reporter
        self._stop = stop
        self._began = time.perf_counter()
        self._pool: ThreadPoolExecutor

    def read(
        self, sources: Sequence[str], cache: Path | None, stack: ExitStack, min_side: int
    ) -> TrainingSet:
        """Decode the images; ``stack`` closes the open files."""
        self._pool = stack.enter_context(ThreadPoolExecutor(self._settings.workers or cpu_count()))
        training_set = read_training_set(
            sources,
            self._settings,
            folder=self._folder,
            cache=cache,
            pool=self._pool,
            stop=self._stop,
            reporter=self._reporter,
            min_side=min_side,
        )
        stack.callback(training_set.read.close)
        return training_set

    def teach(
        self, training_set: TrainingSet, described: dict[str, Any], teacher: Teacher | None
    ) -> TeacherVectors:
        """The teacher's vectors of all images."""

        def tick(done: int, total: int) -> None:
            self._reporter.tell(TrainProgress("teach", done, total))

        return vectors_of(
            described, teacher, training_set.read, self._folder, tick=tick, stop=self._stop
        )

    def train(
        self,
        training_set: TrainingSet,
        network: SimCLR,
        provenance: Provenance,
        stack: ExitStack,
        vectors: TeacherVectors | None,
        *,
        resume: bool,
    ) -> TrainReport:
        """Train to the end and export, unless the run is stopped."""
        folder, settings, read = self._folder, self._settings, training_set.read
        labels = read.pictures.labels
        trainer = Trainer(settings, network, labels, self._device, self._stop, vectors)
        views = 1 if vectors is not None and settings.teacher_weight == 1 else 2
        batches = Batches(
            read.pictures, settings, training_set.batch, self._device, self._pool, views
        )
        position = None
        if resume:
            position = restore(folder, provenance, trainer, batches.per_epoch * settings.epochs)
        purge = position.step + 1 if position else None
        writer = stack.enter_context(SummaryWriter(str(folder / LOGS), purge_step=purge))
        held_out = read.held_out, read.held_out_squashed
        loop = TrainingLoop(
            provenance,
            trainer,
            batches,
            Scorer(settings, *held_out, batches, trainer, writer, folder),
            Saver(folder, trainer),
            batch=training_set.batch,
            writer=writer,
            reporter=self._reporter,
            stop=self._stop,
            began=self._began,
        )
        if position:
            loop.resume(position)
        _log.info("training from step %d on %d images", loop.step, len(read.pictures))
        with kept_pages():
            loop.run()
        if loop.interrupted:
            return self._report(training_set, loop, {})
        self._reporter.tell(TrainProgress("export"))
        exported = self._export(training_set)
        remove_vectors(folder)
        return self._report(training_set, loop, exported)

    def _export(self, training_set: TrainingSet) -> dict[str, float | int | str]:
        """Write the encoder; return how well its files agree."""
        exported = export(self._folder, *training_set.calibration())
        if exported.default != "int8":
            self._reporter.warn(
                f"int8 finds only {exported.parity['int8_fp32_top10_overlap']:.0%} of the ten nearest "
                f"that fp32 finds: the encoder runs in fp32, at a third of the speed"
            )
        _log.info("exported %s, which runs in %s", self._folder, exported.default)
        return exported.parity

    def _report(
        self, training_set: TrainingSet, loop: TrainingLoop, parity: dict[str, float | int | str]
    ) -> TrainReport:
        read = training_set.read
        steps_here = loop.step - loop.first_step
        return TrainReport(
            images=len(read.pictures),
            held_out=len(read.held_out),
            rejected=tuple(read.rejected),
            epochs=loop.epochs,
            steps=loop.step,
            seconds=time.perf_counter() - self._began,
            images_per_second=steps_here * training_set.batch / max(loop.seconds, 1e-9),
            loss=loop.loss,
            held_out_recall=loop.recall,
            out=str(self._folder),
            parity=parity,
            warnings=tuple(self._reporter.warnings),
            held_out_accuracy=loop.accuracy,
            best_epoch=loop.best_epoch,
            interrupted=loop.interrupted,
        )


def _never() -> bool:
    return False


def _side_for(teacher: dict[str, Any] | None) -> int:
    """The shorter side of pictures that a teacher sees in full; 0 without one."""
    return min(int(teacher["image_size"]), MAX_TEACHER_SIDE) if teacher else 0


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted != "cpu":
        number = int(wanted.partition(":")[2] or 0)
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            raise UsageError(
                f"there is no device {wanted}, or this torch cannot use it: choose the device auto "
                f"or cpu"
            )
    return torch.device(wanted)


def _first_weights(init: str | Path, settings: TrainSettings) -> tuple[SimCLR, Provenance]:
    """The network of an encoder, by name or folder, and its description."""
    files = registry.find(str(init))
    folder = files.model.parent
    if registry.comes_along(files) and not (folder / CHECKPOINT).exists():
        raise TrainingError(
            f"the weights of {files.name} to begin with are in a clone of the project, and not in "
            f"the installed package: name a folder that 'engine train' wrote with init=, or install "
            f"a clone"
        )
    network, provenance = load_checkpoint(folder)
    for name in ("hidden", "dim"):
        theirs, ours = getattr(provenance.settings, name), getattr(settings, name)
        if theirs != ours:
            raise UsageError(
                f"{name} of the encoder {init} is {theirs}, not {ours}: set it to that"
            )
    return network, provenance
