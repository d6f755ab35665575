"""The training loop: reads the images, trains, keeps checkpoints, exports the encoder."""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from engine.config import cpu_count
from engine.encoders import registry
from engine.errors import TrainingError, UsageError
from engine.records import Rejection
from engine.training import data
from engine.training.batches import Batches
from engine.training.checkpoint import (
    CHECKPOINT,
    LAST,
    Place,
    Provenance,
    engine_version,
    fitting,
    is_finite,
    last_provenance,
    load_checkpoint,
    load_last,
    save_checkpoint,
    save_last,
    today,
)
from engine.training.export import CALIBRATION_IMAGES, ENCODER, Images, export
from engine.training.interruptible import AbandonedError, asking, whole_or_not
from engine.training.malloc_pages import kept_pages
from engine.training.methods import Contrastive, Supervised, method
from engine.training.model import SimCLR, build, normalised
from engine.training.neighbours_sheet import sheet
from engine.training.settings import TrainSettings

LOGS = "logs"
SHEETS = "sheets"
SHEET_QUERIES, SHEET_NEAREST = 8, 6
_SHEETS = 10  # of one run
_SCORE_BATCH = 64
# A checkpoint of 180 MB after epochs of two batches would take longer than they: saving waits until
# it has been no more than this share of the time.
_SAVING_SHARE = 0.05
# What a run that goes on may have otherwise: none of it changes what is learned from a batch.
_MAY_DIFFER = ("recipe", "epochs", "device", "workers")


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a run is. ``phase`` is "read", "train" or "export"; fields that do not apply are 0."""

    phase: str
    done: int = 0  # "read": files read; "train": steps taken in the whole run
    total: int = 0  # of the same
    epoch: int = 0  # from 1
    epochs: int = 0
    loss: float | None = None  # of the last step
    images_per_second: float = 0.0  # of this epoch; the network sees two views of each image
    learning_rate: float = 0.0  # of the last step
    held_out_recall: float | None = None  # set once an epoch is scored
    held_out_accuracy: float | None = None  # the same, where labels are learned
    warning: str | None = None  # set in the call that reports it, and only there


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run did; ``rejected`` lists the images that could not be read."""

    images: int
    held_out: int
    rejected: tuple[Rejection, ...]
    epochs: int
    steps: int  # of all, those before a run went on included
    seconds: float
    images_per_second: float  # while training; the network sees two views of each image
    loss: float | None  # mean over the last epoch; None before the first is done
    held_out_recall: float | None  # after the last epoch
    out: str
    parity: dict[str, float | int | str]  # empty where nothing was exported
    warnings: tuple[str, ...] = field(default=())
    held_out_accuracy: float | None = None  # after the last epoch, where labels are learned
    best_epoch: int = 0  # the one that was exported
    interrupted: bool = False  # stopped before its end; it can be resumed


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
    resume: bool = False,
    cache: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainReport:
    """Train an encoder on the images of ``sources`` and write it into the folder ``out``.

    ``name`` (default: the folder's name), ``description`` (what the images are, under which
    licence) and ``licence`` (of the weights) become part of the encoder. Unreadable images are
    skipped and reported. What is exported is the best network, by what was held out, or the last
    where nothing was. Once ``stop`` says so the run ends, the step under way is given up, and it can be
    resumed.

    ``init`` is an encoder to begin with the weights of, by name or folder, instead of random ones; its
    widths have to be those of the settings.

    ``resume`` goes on with the run in ``out``, with its settings if none are given; more epochs
    may be. On the CPU the result is that of a run that never stopped. ``cache`` is a folder that
    keeps the decoded images for the next run. ``UsageError`` where other settings or other images
    are given; ``TrainingError`` where a run cannot go on.
    """
    folder = Path(out)
    before = saved_run(folder) if resume else None
    settings = settings or (before.settings if before else TrainSettings())
    device = _device(settings.device)
    if before:
        _check_settings(before.settings, settings, folder)
        if init is not None:
            raise UsageError(f"the training in {folder} has begun: leave out init, or resume")
    first = _first_weights(init, settings) if init is not None else None
    data.check(sources)
    _make_folder(folder)
    run = _Run(settings, progress or _ignore, stop or _never, device, folder)
    with ExitStack() as stack:
        stack.enter_context(_alone(folder))
        if not before:
            _check_fresh(folder)
        run.pool = stack.enter_context(ThreadPoolExecutor(run.workers))
        run.read(sources, Path(cache) if cache is not None else None, stack)
        stack.enter_context(_written(folder))
        stack.enter_context(_enough_memory(device))
        said = before.data if before else {}
        run.build(
            Provenance(
                name=name or (before.name if before else folder.resolve().name),
                settings=settings,
                epoch=0,
                loss=None,
                data=run.described(
                    description or said.get("description", ""),
                    first[1].name if first else said.get("init", ""),
                ),
                engine_version=engine_version(),
                licence=licence or (before.licence if before else ""),
            ),
            first[0] if first else None,
        )
        if before:
            run.restore()
        run.writer = stack.enter_context(
            SummaryWriter(str(folder / LOGS), purge_step=run.step + 1 if before else None)
        )
        with kept_pages():
            run.train()
        if run.interrupted:
            return run.report({})
        run.progress(TrainProgress("export"))
        exported = export(folder, *run.calibration())
    if exported.default != "int8":
        run.warn(
            f"int8 finds {exported.parity['int8_fp32_top10_overlap']:.0%} of the ten nearest that "
            f"fp32 finds: fp32 is what runs, at a third of the speed"
        )
    return run.report(exported.parity)


def saved_run(out: str | Path) -> Provenance:
    """Name, settings and data of the run that ``train(resume=True)`` would go on with."""
    folder = Path(out)
    if not (folder / LAST).is_file():
        raise UsageError(
            f"{folder} holds no {LAST}, so there is no training to go on with: start one without "
            f"resume"
        )
    return last_provenance(folder)


class _Run:
    """One training run: what it has read, the network, and the figures that it reports."""

    pool: ThreadPoolExecutor
    writer: SummaryWriter
    pictures: data.Pictures
    squashed: data.Pictures
    held_out: data.Pictures
    held_out_squashed: data.Pictures
    network: SimCLR
    method: Contrastive
    optimizer: torch.optim.Optimizer
    batches: Batches

    def __init__(
        self,
        settings: TrainSettings,
        progress: Callable[[TrainProgress], None],
        stop: Callable[[], bool],
        device: torch.device,
        folder: Path,
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.stop = stop
        self.device = device
        self.folder = folder
        self.workers = settings.workers or cpu_count()
        self.batch = settings.batch
        self.rejected: list[Rejection] = []
        self.warnings: list[str] = []
        self.started = time.perf_counter()
        self.training_seconds = 0.0
        self.step = 0  # steps taken, in the whole run
        self.first_step = 0  # where this process began
        self.losses = 0.0  # their sum in the epoch that is under way
        self.loss: float | None = None
        self.recall: float | None = None
        self.accuracy: float | None = None
        self.best_epoch = 0
        self.best_score: float | None = None
        self.best_weights: dict[str, Tensor] = {}  # of the best network that is not saved yet
        self.best_provenance: Provenance | None = None
        self.saved_epoch = 0  # of the checkpoint on the disk
        self.saving_seconds = 0.0
        self.interrupted = False

    def read(self, sources: Sequence[str], cache: Path | None, stack: ExitStack) -> None:
        """Decode the images; ``TrainingError`` where there is nothing to learn from."""
        settings = self.settings

        def tick(done: int, total: int) -> None:
            self.progress(TrainProgress("read", done, total))

        side = round(settings.shrink * settings.image_size)
        read = data.read(
            sources,
            side=side,
            square=settings.image_size,
            folder=self.folder,
            cache=cache,
            held_out=settings.held_out,
            pool=self.pool,
            tick=tick,
            stop=self.stop,
        )
        stack.callback(read.close)
        if self.stop():
            raise KeyboardInterrupt  # there is nothing yet to go on from
        self.pictures, self.squashed = read.pictures, read.squashed
        self.held_out, self.held_out_squashed = read.held_out, read.held_out_squashed
        self.rejected = read.rejected
        n = len(self.pictures)
        total = n + len(self.held_out) + len(self.rejected)
        if not total:
            raise TrainingError(
                f"no images in {', '.join(sources) or 'no sources'}: name a folder that has some"
            )
        if n < 2:
            first = next((f" ({r.source}: {r.reason})" for r in self.rejected), "")
            raise TrainingError(
                f"{n} of {total} images can be read{first}, and training needs at least 2: "
                f"add images"
            )
        if _alike(self.squashed):
            raise TrainingError(
                f"all {n} images are alike, so there is nothing to tell apart: add other images"
            )
        if self.rejected:
            self.warn(f"{len(self.rejected)} of {total} images cannot be read and are left out")
        if read.side < side:
            self.warn(
                f"crops are cut from pictures of {read.side} pixels a side, not {side}: "
                f"{data.MAX_BYTES >> 30} GiB of disk hold no larger ones"
            )
        if n < self.batch:
            self.batch = n
            self.warn(
                f"{n} images are fewer than a batch of {self.settings.batch}: the batch is {n}, "
                f"and a small batch has few negatives to learn from"
            )

    def described(self, description: str, init: str) -> dict[str, Any]:
        """What checkpoints say of the images, and of the encoder that the run began with."""
        return {
            "count": len(self.pictures),
            "fingerprint": self.pictures.fingerprint,
            "held_out": len(self.held_out),
            "held_out_fingerprint": self.held_out.fingerprint,
            "description": description,
            **({"init": init} if init else {}),
        }

    def calibration(self) -> list[Images]:
        """For the export: evenly spread images of those trained on, and of those held out if any."""
        kept = [self.squashed]
        if (
            len(self.held_out_squashed) > 2
        ):  # of two each is the other's nearest, whatever int8 does
            kept.append(self.held_out_squashed)
        return [
            torch.stack([images[i] for i in _spread(len(images), CALIBRATION_IMAGES)]).numpy()
            for images in kept
        ]

    def build(self, provenance: Provenance, first: SimCLR | None) -> None:
        """The network to begin with, a fresh one by default, and what trains it."""
        self.provenance = provenance
        settings = self.settings
        network = build(settings) if first is None else first
        network = network.to(memory_format=torch.channels_last).to(self.device)
        self.network = network
        self.method = method(settings, network, self.pictures.labels)
        self.parameters: dict[str, nn.Parameter] = {
            **{f"network.{name}": value for name, value in network.named_parameters()},
            **{f"method.{name}": value for name, value in self.method.parameters().items()},
        }
        # Biases and the scales of the normalisation do not decay: they hold nothing back.
        weights = [value for value in self.parameters.values() if value.ndim > 1]
        others = [value for value in self.parameters.values() if value.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            fused=True,  # half the time of an update
        )
        self.batches = Batches(self.pictures, settings, self.batch, self.device, self.pool)
        self.total = self.batches.per_epoch * settings.epochs

    def restore(self) -> None:
        """Go to where the run in the folder was left."""
        tensors, before, place = load_last(self.folder)
        for name, what in (("fingerprint", "train"), ("held_out_fingerprint", "held out")):
            if before.data.get(name) != self.provenance.data[name]:
                raise UsageError(
                    f"the images ({what}) are not those that the training in {self.folder} began "
                    f"with: name the same sources, unchanged, or train into another folder"
                )
        if place.step > self.total:
            raise UsageError(
                f"epochs is {self.settings.epochs}: the training in {self.folder} has already "
                f"gone beyond it"
            )
        with fitting(self.folder / LAST):
            self.network.load_state_dict(_under("network.", tensors))
            self.method.load(_under("method.", tensors))
            for name, parameter in self.parameters.items():
                self.optimizer.state[parameter] = _moments(
                    parameter, _under(f"optimizer.{name}.", tensors)
                )
        self.step = self.first_step = place.step
        self.losses, self.loss = place.losses, place.loss
        if (self.folder / CHECKPOINT).is_file():
            self.best_epoch = self.saved_epoch = place.best_epoch
            self.best_score = place.best_score

    def train(self) -> None:
        """All steps that are left; afterwards the best network is on the disk."""
        try:
            self._train()
        except AbandonedError:  # the network is as it was before that step
            self._stop_here()

    def _stop_here(self) -> None:
        if not self.step:
            raise KeyboardInterrupt  # there is nothing yet to go on from
        self._check_weights(*(n + 1 for n in divmod(max(self.step - 1, 0), self.batches.per_epoch)))
        self._save()
        self.interrupted = True

    def _train(self) -> None:
        per_epoch = self.batches.per_epoch
        if self.losses and self.step % per_epoch == 0:
            self._end_epoch(self.step // per_epoch)  # it was to be scored when the run stopped
        self.network.train()
        began, first = time.perf_counter(), self.step
        for rows, views in self.batches.between(self.step, self.total):
            epoch, in_epoch = (number + 1 for number in divmod(self.step, per_epoch))
            rate = _learning_rate(self.settings, self.step, self.total, per_epoch)
            loss = self._step(rows, views, rate)
            self.step += 1
            if not math.isfinite(loss):
                raise self._diverged(epoch, in_epoch)
            self.losses += loss
            speed = (self.step - first) * self.batch / (time.perf_counter() - began)
            self.writer.add_scalar("loss", loss, self.step)
            self.writer.add_scalar("learning_rate", rate, self.step)
            self.writer.add_scalar("images_per_second", speed, self.step)
            self._tell(epoch, loss=loss, images_per_second=speed, learning_rate=rate)
            if in_epoch == per_epoch:
                self.training_seconds += time.perf_counter() - began
                self._end_epoch(epoch)
                self.network.train()
                began, first = time.perf_counter(), self.step
            if self.stop() and self.step < self.total:
                self.training_seconds += time.perf_counter() - began
                self._stop_here()
                return

    def report(self, parity: dict[str, float | int | str]) -> TrainReport:
        """What is known at the end."""
        here = self.step - self.first_step
        return TrainReport(
            images=len(self.pictures),
            held_out=len(self.held_out),
            rejected=tuple(self.rejected),
            epochs=self.step // self.batches.per_epoch,
            steps=self.step,
            seconds=time.perf_counter() - self.started,
            images_per_second=here * self.batch / max(self.training_seconds, 1e-9),
            loss=self.loss,
            held_out_recall=self.recall,
            out=str(self.folder),
            parity=parity,
            warnings=tuple(self.warnings),
            held_out_accuracy=self.accuracy,
            best_epoch=self.best_epoch,
            interrupted=self.interrupted,
        )

    def warn(self, text: str) -> None:
        """Tell it now, and again in the report."""
        self.warnings.append(text)
        self.progress(TrainProgress("read", warning=text))

    def _tell(self, epoch: int, **what: float | None) -> None:
        at = TrainProgress("train", self.step, self.total, epoch, self.settings.epochs)
        self.progress(dataclasses.replace(at, **what))  # type: ignore[arg-type]

    def _step(self, rows: Sequence[int], views: Tensor, rate: float) -> float:
        """One step on (2 × batch, 3, S, S) float32, the second half other views of the first."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with whole_or_not(self.network):
            loss = self.method.loss(self.network, self._embed, rows, views)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.method.after_step(self.network)
        return loss.item()

    def _embed(self, network: SimCLR, x: Tensor) -> Tensor:
        """(n, 3, S, S) float32 → (n, dim) float32 of unit length."""
        with (
            torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
            ),
            asking(network, self.stop),
        ):
            z: Tensor = network(x.contiguous(memory_format=torch.channels_last))
        return z

    def _end_epoch(self, epoch: int) -> None:
        """Score the network, keep it if it is the best, and save what is due."""
        self._check_weights(epoch, self.batches.per_epoch)
        score = self._score(epoch) if len(self.held_out) > 1 else None
        # Only now: a run that stops while it scores goes on with scoring.
        self.loss, self.losses = self.losses / self.batches.per_epoch, 0.0
        self.writer.add_scalar("epoch_loss", self.loss, epoch)
        # Of equals the later one: it has learned for longer than so few images can tell.
        if score is None or self.best_score is None or score >= self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best_weights = {
                name: value.detach().to("cpu", copy=True)
                for name, value in self.network.state_dict().items()
            }
            self.best_provenance = self._provenance(epoch, score)
        beside = time.perf_counter() - self.started
        if epoch == self.settings.epochs or self.saving_seconds <= _SAVING_SHARE * beside:
            self._save()
        self.writer.flush()

    def _provenance(self, epoch: int, score: float | None) -> Provenance:
        return dataclasses.replace(
            self.provenance, epoch=epoch, loss=self.loss, score=score, created=today()
        )

    def _save(self) -> None:
        """Write the best network, if a newer one is, and then what the run goes on from.

        In this order: should it end between the two, the run goes on from before that epoch, and
        finds the same network again.
        """
        began = time.perf_counter()
        if self.best_provenance is not None:
            save_checkpoint(self.folder, self.best_weights, self.best_provenance)
            self.saved_epoch = self.best_epoch
            self.best_weights, self.best_provenance = {}, None
        tensors = {
            **_named("network.", self.network.state_dict()),
            **_named("method.", self.method.tensors()),
        }
        for name, parameter in self.parameters.items():
            tensors |= _named(f"optimizer.{name}.", self.optimizer.state[parameter])
        place = Place(self.step, self.losses, self.loss, self.best_epoch, self.best_score)
        last = self._provenance(self.step // self.batches.per_epoch, None)
        save_last(self.folder, tensors, last, place)
        self.saving_seconds += time.perf_counter() - began

    def _check_weights(self, epoch: int, step: int) -> None:
        # The last step's loss was finite, but what it did to the weights need not be.
        if not is_finite(self.network.state_dict()):
            raise self._diverged(epoch, step)

    def _diverged(self, epoch: int, step: int) -> TrainingError:
        kept = (
            f"the checkpoint of epoch {self.saved_epoch} is in {self.folder}"
            if self.saved_epoch
            else "there is no checkpoint"
        )
        return TrainingError(
            f"training diverged in epoch {epoch}, step {step} (the loss or a weight is no longer "
            f"a number): lower the learning rate, now {self.settings.learning_rate:g}; {kept}"
        )

    @torch.inference_mode()
    def _score(self, epoch: int) -> float | None:
        """How well held-out images are told apart: what the best network is chosen by.

        Recall@1: is a view's nearest clean image the one it is a view of? Clean images are squashed
        as an encoder is given them; the views are the same each epoch. Where labels are learned it
        is the share of the clean images whose label is found instead.
        """
        self.network.eval()
        generator = Generator().manual_seed(self.settings.seed + 1)
        parts, clean_parts = [], []
        for start in range(0, len(self.held_out), _SCORE_BATCH):
            rows = range(start, min(start + _SCORE_BATCH, len(self.held_out)))
            views = self.batches.views(self.held_out, rows, generator)
            parts.append(self._embed(self.network, views))
            pixels = torch.stack([self.held_out_squashed[row] for row in rows]).to(self.device)
            x = normalised(pixels, self.settings.mean, self.settings.std)
            clean_parts.append(self._embed(self.network, x))
        clean = torch.cat(clean_parts)
        nearest = (torch.cat(parts) @ clean.T).argmax(1)
        self.recall = float((nearest.cpu() == torch.arange(len(nearest))).float().mean())
        self.writer.add_scalar("held_out_recall_at_1", self.recall, epoch)
        score: float | None = self.recall
        if isinstance(self.method, Supervised):
            score = self.accuracy = self.method.accuracy(clean, self.held_out.labels)
            if score is not None:
                self.writer.add_scalar("held_out_accuracy", score, epoch)
        self._tell(epoch, held_out_recall=self.recall, held_out_accuracy=self.accuracy)
        if epoch % max(1, self.settings.epochs // _SHEETS) == 0 or epoch == self.settings.epochs:
            self._sheet(epoch, clean)
        return score

    def _sheet(self, epoch: int, clean: Tensor) -> None:
        """A picture of some held-out images, each with the nearest of the others."""
        queries = _spread(len(clean), SHEET_QUERIES)
        cosines = clean[queries] @ clean.T
        cosines[range(len(queries)), queries] = -math.inf
        nearest = cosines.topk(min(SHEET_NEAREST, len(clean) - 1), 1).indices.tolist()
        image = sheet(
            [
                [self.held_out_squashed[row].numpy() for row in (query, *others)]
                for query, others in zip(queries, nearest, strict=True)
            ]
        )
        path = self.folder / SHEETS / f"epoch-{epoch:04}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        self.writer.add_image("nearest", np.asarray(image), epoch, dataformats="HWC")


def _ignore(_: TrainProgress) -> None:
    pass


def _never() -> bool:
    return False


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted != "cpu":
        number = int(wanted.partition(":")[2] or 0)
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            raise UsageError(
                f"the device {wanted} is not there, or this torch cannot use it: "
                f"choose the device auto or cpu"
            )
    return torch.device(wanted)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made a folder for the encoder: {error.strerror}"
        ) from None


def _check_fresh(folder: Path) -> None:
    for file in (ENCODER, CHECKPOINT, LAST):
        if (folder / file).exists():
            raise UsageError(
                f"{folder} already holds {file} of an earlier training: choose another folder, "
                f"or remove it, or go on with that training with resume"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two runs would mix their checkpoints. The kernel lets go of it if we die."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another training writes into {folder}: wait for it or end it, or choose another "
                f"folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(held)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Say what to do where logs, sheets or models cannot be written."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads what a run tells
        raise
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written ({error.strerror or error}): make room there, after which "
            f"a training goes on with resume, or choose another folder"
        ) from None


@contextmanager
def _enough_memory(device: torch.device) -> Iterator[None]:
    """Say what to do where memory does not suffice."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):  # on a CPU it has no class of its own
            raise
        raise TrainingError(
            f"the memory of the {device} does not suffice: take a smaller batch, image_size, "
            f"hidden, dim or queue"
        ) from None


def _first_weights(init: str | Path, settings: TrainSettings) -> tuple[SimCLR, Provenance]:
    """The network of an encoder, by name or folder, and what is known of it."""
    network, provenance = load_checkpoint(registry.find(str(init)).model.parent)
    for name in ("hidden", "dim"):
        theirs, ours = getattr(provenance.settings, name), getattr(settings, name)
        if theirs != ours:
            raise UsageError(f"{name} of the encoder {init} is {theirs}, not {ours}: ask for that")
    return network, provenance


def _check_settings(before: TrainSettings, now: TrainSettings, folder: Path) -> None:
    for field_ in dataclasses.fields(TrainSettings):
        name = field_.name
        if name not in _MAY_DIFFER and getattr(before, name) != getattr(now, name):
            raise UsageError(
                f"{name} is {getattr(now, name)!r}, and the training in {folder} began with "
                f"{getattr(before, name)!r}: leave it as it was, or train into another folder"
            )


def _learning_rate(settings: TrainSettings, step: int, total: int, per_epoch: int) -> float:
    """The rate of a step, counted from 0."""
    warmup = min(settings.warmup * per_epoch, total // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "cosine":
        turn = math.pi * (step - warmup) / (total - warmup)
        return settings.learning_rate * (1 + math.cos(turn)) / 2
    return settings.learning_rate


def _alike(squashed: data.Pictures) -> bool:
    return all(torch.equal(squashed[0], squashed[i]) for i in range(1, len(squashed)))


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _moments(parameter: nn.Parameter, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Adam keeps of a parameter, where the parameter is and laid out in memory as it is."""
    # The count too: the fused update of a GPU reads it there.
    kept = {"step": saved["step"].to(parameter.device, torch.float32).reshape(())}
    for name in ("exp_avg", "exp_avg_sq"):
        if saved[name].shape != parameter.shape:
            raise ValueError(f"{name} has the shape {tuple(saved[name].shape)}")
        kept[name] = torch.empty_like(parameter.detach()).copy_(saved[name])
    return kept


def _spread(n: int, most: int) -> list[int]:
    """Up to ``most`` of n indices, evenly spread."""
    count = min(n, most)
    return [i * n // count for i in range(count)]
