"""The training loop: takes the steps, scores each epoch, and saves a checkpoint when one is due."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from engine.errors import TrainingError
from engine.training.batches import Batches
from engine.training.checkpoint import Provenance, RunPosition, is_finite, today
from engine.training.interruptible import AbandonedError
from engine.training.report import Reporter, TrainProgress
from engine.training.saving import Saver
from engine.training.schedule import learning_rate
from engine.training.scoring import Scorer
from engine.training.trainer import Trainer

_log = logging.getLogger("engine.training")


class TrainingLoop:
    """Runs the steps of a training until the last one, or until it is stopped.

    ``step`` counts the steps of the whole run, ``seconds`` the time that this process trained.
    """

    def __init__(
        self,
        provenance: Provenance,
        trainer: Trainer,
        batches: Batches,
        scorer: Scorer,
        saver: Saver,
        *,
        batch: int,
        writer: SummaryWriter,
        reporter: Reporter,
        stop: Callable[[], bool],
        began: float,
    ) -> None:
        """``batch`` is images per batch; ``began`` is ``time.perf_counter`` at the start of the run."""
        self._provenance = provenance
        self._settings = provenance.settings
        self._trainer = trainer
        self._batches = batches
        self._scorer = scorer
        self._saver = saver
        self._batch = batch
        self._writer = writer
        self._reporter = reporter
        self._stop = stop
        self._began = began
        self._total = batches.per_epoch * self._settings.epochs
        self._losses = 0.0  # sum of the losses in the current epoch
        self.first_step = 0  # the step at which this process began
        self.step = 0
        self.seconds = 0.0
        self.loss: float | None = None
        self.recall: float | None = None
        self.accuracy: float | None = None
        self.interrupted = False

    @property
    def epochs(self) -> int:
        """The number of complete epochs of the run."""
        return self.step // self._batches.per_epoch

    @property
    def best_epoch(self) -> int:
        """The epoch of the best network, 0 before the first."""
        return self._saver.best_epoch

    def resume(self, position: RunPosition) -> None:
        """Continue from ``position``."""
        self.step = self.first_step = position.step
        self._losses, self.loss = position.losses, position.loss
        self._saver.resume(position)

    def run(self) -> None:
        """Take all remaining steps; afterwards the best network is on the disk."""
        try:
            self._run()
        # The network is in its state before the abandoned step.
        except AbandonedError:
            self._stop_here()

    def _run(self) -> None:
        per_epoch = self._batches.per_epoch
        # The run was stopped while it scored this epoch.
        if self._losses and self.step % per_epoch == 0:
            self._end_epoch(self.step // per_epoch)
        batches = self._batches.between(self.step, self._total)
        while self.step < self._total:
            self._trainer.network.train()
            began = time.perf_counter()
            try:
                self._steps(batches, began)
            # Count the time of an abandoned step too.
            finally:
                self.seconds += time.perf_counter() - began
            if self.step % per_epoch == 0:
                self._end_epoch(self.step // per_epoch)
            if self.step < self._total and self._stop():
                self._stop_here()
                return

    def _steps(self, batches: Iterator[tuple[list[int], Tensor]], began: float) -> None:
        """Take steps to the end of the epoch, or until ``stop()`` is true."""
        per_epoch, first = self._batches.per_epoch, self.step
        for rows, views in batches:
            epoch, in_epoch = (number + 1 for number in divmod(self.step, per_epoch))
            rate = learning_rate(self._settings, self.step, self._total, per_epoch)
            loss = self._trainer.step(rows, views, rate)
            self.step += 1
            if not math.isfinite(loss):
                raise self._diverged(epoch, in_epoch)
            self._losses += loss
            speed = (self.step - first) * self._batch / (time.perf_counter() - began)
            self._writer.add_scalar("loss", loss, self.step)
            self._writer.add_scalar("learning_rate", rate, self.step)
            self._writer.add_scalar("images_per_second", speed, self.step)
            self._tell(epoch, loss=loss, images_per_second=speed, learning_rate=rate)
            if in_epoch == per_epoch or self._stop():
                return

    def _stop_here(self) -> None:
        # Without a step there is nothing to resume from.
        if not self.step:
            raise KeyboardInterrupt
        per_epoch = self._batches.per_epoch
        self._check_weights(*(n + 1 for n in divmod(max(self.step - 1, 0), per_epoch)))
        self._save()
        self.interrupted = True

    def _end_epoch(self, epoch: int) -> None:
        """Score the network, keep it if it is the best, and save if a checkpoint is due."""
        self._check_weights(epoch, self._batches.per_epoch)
        best_by = self._score(epoch)
        # Reset the sum only after scoring, so that a run stopped during it scores again.
        self.loss, self._losses = self._losses / self._batches.per_epoch, 0.0
        self._writer.add_scalar("epoch_loss", self.loss, epoch)
        self._saver.consider(self._provenance_of(epoch, best_by))
        _log.info("epoch %d: loss %.4f, held-out score %s", epoch, self.loss, best_by)
        seconds = time.perf_counter() - self._began
        if epoch == self._settings.epochs or self._saver.is_due(seconds):
            self._save()
        self._writer.flush()

    def _score(self, epoch: int) -> float | None:
        """The score by which the best network is chosen; None if nothing is held out."""
        score = self._scorer.score(epoch)
        if score is None:
            return None
        self.recall, self.accuracy = score.recall, score.accuracy
        self._tell(epoch, held_out_recall=self.recall, held_out_accuracy=self.accuracy)
        return score.best_by

    def _tell(self, epoch: int, **what: float | None) -> None:
        at = TrainProgress("train", self.step, self._total, epoch, self._settings.epochs)
        self._reporter.tell(at, **what)

    def _provenance_of(self, epoch: int, score: float | None) -> Provenance:
        return dataclasses.replace(
            self._provenance, epoch=epoch, loss=self.loss, score=score, created=today()
        )

    def _save(self) -> None:
        last = self._provenance_of(self.epochs, None)
        self._saver.save(self.step, self._losses, last)

    def _check_weights(self, epoch: int, step: int) -> None:
        # The last loss was finite, but the update after it may have made weights that are not.
        if not is_finite(self._trainer.network.state_dict()):
            raise self._diverged(epoch, step)

    def _diverged(self, epoch: int, step: int) -> TrainingError:
        kept = (
            f"the checkpoint of epoch {self._saver.saved_epoch} is in {self._saver.folder}"
            if self._saver.saved_epoch
            else "there is no checkpoint"
        )
        return TrainingError(
            f"training diverged in epoch {epoch}, step {step} (the loss or a weight is no longer "
            f"a number): lower the learning rate, now {self._settings.learning_rate:g}; {kept}"
        )
