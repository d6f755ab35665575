"""Progress of a training run: a bar for each phase, and warnings as they come."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from engine.cli import interrupts
from engine.cli.output import warn
from engine.cli.progress import Progress

_UNITS = {"read": "images", "teach": "images", "train": "steps"}
# A checkpoint takes a second or less, but slow disks need longer.
_CHECKPOINT_SECONDS = 30.0


class TrainProgressBars:
    """Shows a bar for each phase of a run, and its warnings as they come."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._bar: Progress | None = None
        self._phase = ""
        self._score = ""

    def __enter__(self) -> TrainProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.close()

    def patience(self) -> float:
        """Seconds that a run may take to stop; it writes a checkpoint only in the phase "train"."""
        return _CHECKPOINT_SECONDS if self._phase == "train" else interrupts.PATIENCE

    def __call__(self, at: Any) -> None:
        """Show ``at``, a ``TrainProgress``."""
        if at.warning:
            warn(at.warning)
            return
        if at.phase != self._phase:
            self._bars.close()
            self._phase, self._bar = at.phase, None
            if at.phase in _UNITS:
                self._bar = self._bars.enter_context(Progress(at.phase, _UNITS[at.phase]))
        if self._bar is None:
            return
        score = at.held_out_recall if at.held_out_accuracy is None else at.held_out_accuracy
        if score is not None:
            self._score = f", held out {score:.3f}"
        if at.loss is not None:
            self._bar.note(
                f"epoch {at.epoch} of {at.epochs}, loss {at.loss:.3f}, rate "
                f"{at.learning_rate:.2g}, {at.images_per_second:,.0f} images/s{self._score}"
            )
        self._bar(at.done, at.total)
