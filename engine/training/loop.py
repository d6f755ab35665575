"""The training loop: reads the images, trains, keeps a checkpoint an epoch, exports the encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.tensorboard import SummaryWriter

from engine.config import cpu_count
from engine.errors import TrainingError, UsageError
from engine.records import Rejection
from engine.training import augment, data
from engine.training.checkpoint import (
    CALIBRATION,
    CHECKPOINT,
    Provenance,
    engine_version,
    is_finite,
    save_checkpoint,
    write_tensors,
)
from engine.training.export import CALIBRATION_IMAGES, ENCODER, export
from engine.training.loss import nt_xent
from engine.training.model import SimCLR, build, normalised
from engine.training.settings import TrainSettings

LOGS = "logs"
HELD_OUT_IMAGES = 1024  # at most so many are scored after each epoch
_SCORE_BATCH = 64


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
    held_out_recall: float | None = None  # set once an epoch is scored
    warning: str | None = None  # set in the call that reports it, and only there


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run did; ``rejected`` lists the images that could not be read."""

    images: int
    held_out: int
    rejected: tuple[Rejection, ...]
    epochs: int
    steps: int
    seconds: float
    images_per_second: float  # while training; the network sees two views of each image
    loss: float  # mean over the last epoch
    held_out_recall: float | None
    out: str
    parity: dict[str, float | int | str]
    warnings: tuple[str, ...] = field(default=())


def train(
    sources: Sequence[str],
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    name: str | None = None,
    description: str = "",
) -> TrainReport:
    """Train an encoder on the images of ``sources`` and write it into the folder ``out``.

    ``name`` (default: the folder's name) and ``description`` (what the images are, under which
    licence) become part of the encoder. Unreadable images are skipped and reported. A run that
    stops early, by Ctrl-C too, leaves the checkpoint of its last whole epoch.
    """
    settings = settings or TrainSettings()
    progress = progress or _ignore
    device = _device(settings.device)
    files = data.named_images(sources)
    held_out_files = data.named_images(sources, held_out=True)[:HELD_OUT_IMAGES]
    if not files:
        raise TrainingError(
            f"no images in {', '.join(sources) or 'no sources'}: name a folder that has some"
        )
    folder = _fresh_folder(Path(out))
    run = _Run(settings, progress, device)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(run.workers))
        pixel_file = data.PixelFile(folder)
        stack.callback(pixel_file.close)
        run.read(files, held_out_files, pixel_file, pool)
        write_tensors(folder / CALIBRATION, run.calibration(), {})
        provenance = Provenance(
            name=name or folder.resolve().name,
            settings=settings,
            epoch=0,
            loss=None,
            data={
                "count": len(run.pictures),
                "fingerprint": run.pictures.fingerprint,
                "description": description,
            },
            engine_version=engine_version(),
        )
        writer = stack.enter_context(SummaryWriter(str(folder / LOGS)))
        run.train(folder, provenance, writer, pool)
    progress(TrainProgress("export"))
    exported = export(folder)
    # It holds pictures, which whoever passes the encoder on may not want to pass on.
    (folder / CALIBRATION).unlink()
    return run.report(folder, exported.parity)


class _Run:
    """One training run: what it has read, the network, and the figures that it reports."""

    pictures: data.Pictures
    squashed: data.Pictures
    held_out: data.Pictures
    held_out_squashed: data.Pictures

    def __init__(
        self,
        settings: TrainSettings,
        progress: Callable[[TrainProgress], None],
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.device = device
        self.workers = settings.workers or cpu_count()
        self.batch = settings.batch
        self.rejected: list[Rejection] = []
        self.warnings: list[str] = []
        self.started = time.perf_counter()
        self.steps = 0
        self.training_seconds = 0.0
        self.loss = math.nan
        self.recall: float | None = None

    def read(
        self,
        files: Sequence[tuple[Path, str]],
        held_out_files: Sequence[tuple[Path, str]],
        pixel_file: data.PixelFile,
        pool: ThreadPoolExecutor,
    ) -> None:
        size = self.settings.image_size
        total = len(files) + len(held_out_files)

        def read(
            files: Sequence[tuple[Path, str]], before: int
        ) -> tuple[data.Pictures, data.Pictures]:
            shrunk, squashed, rejected = data.read_images(
                files,
                pixel_file,
                side=round(self.settings.shrink * size),
                square=size,
                pool=pool,
                tick=lambda done, _: self.progress(TrainProgress("read", before + done, total)),
            )
            self.rejected += rejected
            return shrunk, squashed

        self.pictures, self.squashed = read(files, 0)
        n = len(self.pictures)
        if n < 2:
            first = next((f" ({r.source}: {r.reason})" for r in self.rejected), "")
            raise TrainingError(
                f"{n} of {len(files)} images can be read{first}, and contrastive training needs at "
                f"least 2: add images"
            )
        self.held_out, self.held_out_squashed = read(held_out_files, len(files))
        if self.rejected:
            self.warn(f"{len(self.rejected)} of {total} images cannot be read and are left out")
        if n < self.batch:
            self.batch = n
            self.warn(
                f"{n} images are fewer than a batch of {self.settings.batch}: the batch is {n}, "
                f"and a small batch has few negatives to learn from"
            )

    def calibration(self) -> dict[str, Tensor]:
        """Evenly spread squashed images for the export: train and held_out, (n, S, S, 3) uint8."""
        kept = {"train": self.squashed}
        if len(self.held_out_squashed) > 1:  # neighbours cannot be compared in less
            kept["held_out"] = self.held_out_squashed
        return {
            name: torch.stack([images[i] for i in _spread(len(images), CALIBRATION_IMAGES)])
            for name, images in kept.items()
        }

    def train(
        self,
        folder: Path,
        provenance: Provenance,
        writer: SummaryWriter,
        pool: ThreadPoolExecutor,
    ) -> None:
        settings = self.settings
        network = build(settings).to(memory_format=torch.channels_last).to(self.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        per_epoch = len(self.pictures) // self.batch  # what does not fill a batch waits an epoch
        total = per_epoch * settings.epochs
        batches = self._batches(total, pool)
        saved = 0
        for epoch in range(1, settings.epochs + 1):
            network.train()
            began = time.perf_counter()
            losses = 0.0
            for in_epoch in range(1, per_epoch + 1):
                rate = _learning_rate(settings, self.steps, total)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._step(network, optimizer, next(batches))
                self.steps += 1
                if not math.isfinite(loss):
                    raise _diverged(epoch, in_epoch, saved, settings, folder)
                losses += loss
                speed = in_epoch * self.batch / (time.perf_counter() - began)
                writer.add_scalar("loss", loss, self.steps)
                writer.add_scalar("learning_rate", rate, self.steps)
                writer.add_scalar("images_per_second", speed, self.steps)
                self.progress(
                    TrainProgress("train", self.steps, total, epoch, settings.epochs, loss, speed)
                )
            self.training_seconds += time.perf_counter() - began
            # The last step's loss was finite, but what it did to the weights need not be.
            if not is_finite(network):
                raise _diverged(epoch, per_epoch, saved, settings, folder)
            self.loss = losses / per_epoch
            writer.add_scalar("epoch_loss", self.loss, epoch)
            save_checkpoint(
                folder,
                network,
                Provenance(
                    provenance.name,
                    settings,
                    epoch,
                    self.loss,
                    provenance.data,
                    provenance.engine_version,
                ),
            )
            saved = epoch
            if len(self.held_out) > 1:
                self.recall = self._score(network, pool)
                writer.add_scalar("held_out_recall_at_1", self.recall, epoch)
                self.progress(
                    TrainProgress(
                        "train",
                        self.steps,
                        total,
                        epoch,
                        settings.epochs,
                        held_out_recall=self.recall,
                    )
                )
            writer.flush()

    def report(self, folder: Path, parity: dict[str, float | int | str]) -> TrainReport:
        return TrainReport(
            images=len(self.pictures),
            held_out=len(self.held_out),
            rejected=tuple(self.rejected),
            epochs=self.settings.epochs,
            steps=self.steps,
            seconds=time.perf_counter() - self.started,
            images_per_second=self.steps * self.batch / self.training_seconds,
            loss=self.loss,
            held_out_recall=self.recall,
            out=str(folder),
            parity=parity,
            warnings=tuple(self.warnings),
        )

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress(TrainProgress("read", warning=text))

    def _step(self, network: SimCLR, optimizer: torch.optim.Optimizer, views: Tensor) -> float:
        """One step on (2 × batch, 3, S, S) float32, the second half other views of the first."""
        optimizer.zero_grad(set_to_none=True)
        z = self._embed(network, views)
        z1, z2 = z.chunk(2)
        loss = nt_xent(z1, z2, self.settings.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    def _embed(self, network: SimCLR, x: Tensor) -> Tensor:
        """(n, 3, S, S) float32 → (n, dim) float32 of unit length."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            z: Tensor = network(x.contiguous(memory_format=torch.channels_last))
        return z

    def _batches(self, steps: int, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
        """Two views of each image of a batch, (2 × batch, 3, S, S) float32, for each step.

        Every epoch shuffles the images anew. Beside a GPU the next batch is cut while it computes;
        on a CPU that would only take cores from the network.
        """
        generator = Generator().manual_seed(self.settings.seed)
        order = self._order(steps, generator)
        if self.device.type == "cpu":
            for rows in order:
                yield self._views(self.pictures, rows * 2, generator, pool)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting: Future[Tensor] | None = None
            for rows in order:
                coming = ahead.submit(self._views, self.pictures, rows * 2, generator, pool)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

    def _order(self, steps: int, generator: Generator) -> Iterator[list[int]]:
        """The rows of each batch. The shuffle has its own stream, since draws may run ahead."""
        shuffle = Generator().manual_seed(generator.initial_seed() ^ 0x5EED)
        n = len(self.pictures)
        while steps > 0:
            shuffled: list[int] = torch.randperm(n, generator=shuffle).tolist()
            for start in range(0, n - self.batch + 1, self.batch):
                yield shuffled[start : start + self.batch]
                steps -= 1

    def _views(
        self,
        pictures: data.Pictures,
        rows: Sequence[int],
        generator: Generator,
        pool: ThreadPoolExecutor,
    ) -> Tensor:
        """One augmented view for each of ``rows``: (len(rows), 3, S, S) float32 on the device."""
        draws = augment.draw([pictures.sizes[row] for row in rows], self.settings, generator)
        crops = augment.crop(
            [pictures[row] for row in rows],
            draws,
            self.settings.image_size,
            pool if self.device.type != "cpu" else None,
        )
        return augment.colour(crops.to(self.device), draws, self.settings)

    @torch.inference_mode()
    def _score(self, network: SimCLR, pool: ThreadPoolExecutor) -> float:
        """Recall@1 on held-out images: is a view's nearest clean image the one it is a view of?

        Clean images are squashed as an encoder is given them; the views are the same each epoch.
        """
        network.eval()
        generator = Generator().manual_seed(self.settings.seed + 1)
        views, clean = [], []
        for start in range(0, len(self.held_out), _SCORE_BATCH):
            rows = range(start, min(start + _SCORE_BATCH, len(self.held_out)))
            views.append(self._embed(network, self._views(self.held_out, rows, generator, pool)))
            pixels = torch.stack([self.held_out_squashed[row] for row in rows]).to(self.device)
            x = normalised(pixels, self.settings.mean, self.settings.std)
            clean.append(self._embed(network, x))
        nearest = (torch.cat(views) @ torch.cat(clean).T).argmax(1)
        return float((nearest.cpu() == torch.arange(len(nearest))).float().mean())


def _ignore(_: TrainProgress) -> None:
    pass


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


def _fresh_folder(folder: Path) -> Path:
    for file in (ENCODER, CHECKPOINT):
        if (folder / file).exists():
            raise UsageError(
                f"{folder} already holds {file} of an earlier training: choose another folder, "
                f"or remove it"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made a folder for the encoder: {error.strerror}"
        ) from None
    return folder


def _learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
    return settings.learning_rate


def _diverged(
    epoch: int, step: int, saved: int, settings: TrainSettings, folder: Path
) -> TrainingError:
    kept = f"the checkpoint of epoch {saved} is in {folder}" if saved else "there is no checkpoint"
    return TrainingError(
        f"training diverged in epoch {epoch}, step {step} (the loss or a weight is no longer a "
        f"number): lower the learning rate, now {settings.learning_rate:g}; {kept}"
    )


def _spread(n: int, most: int) -> list[int]:
    """Up to ``most`` of n indices, evenly spread."""
    count = min(n, most)
    return [i * n // count for i in range(count)]
