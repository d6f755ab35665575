"""The reports of a training run: its progress, and its result at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.records import Rejection


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """The progress of a run; unused fields are 0 or None.

    ``phase`` is "read", "teach" (only with a teacher), "train" or "export".
    """

    phase: str
    # "read": files read; "teach": images that the teacher saw; "train": steps taken in the whole run
    done: int = 0
    total: int = 0  # of the files or the steps
    epoch: int = 0  # from 1
    epochs: int = 0
    loss: float | None = None  # of the last step
    images_per_second: float = 0.0  # of this epoch; the network sees two views of each image
    learning_rate: float = 0.0  # of the last step
    held_out_recall: float | None = None  # set when an epoch is scored
    held_out_accuracy: float | None = None  # set when an epoch is scored and labels are learned
    warning: str | None = None  # set only in the call that reports it


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run did; ``rejected`` lists the images that could not be read."""

    images: int
    held_out: int
    rejected: tuple[Rejection, ...]
    epochs: int
    steps: int  # in total, those before a resume included
    seconds: float
    images_per_second: float  # while training; the network sees two views of each image
    loss: float | None  # mean over the last epoch; None before the end of the first
    held_out_recall: float | None  # after the last epoch
    out: str
    parity: dict[str, float | int | str]  # empty if nothing was exported
    warnings: tuple[str, ...] = field(default=())
    held_out_accuracy: float | None = None  # after the last epoch, if labels are learned
    best_epoch: int = 0  # the exported one
    interrupted: bool = False  # whether it was stopped early; it can be resumed


class Reporter:
    """Reports the progress of a run to the caller; ``warnings`` are all that were reported."""

    def __init__(self, progress: Callable[[TrainProgress], None] | None) -> None:
        self._progress = progress
        self.warnings: list[str] = []

    def tell(self, at: TrainProgress, **changes: float | None) -> None:
        """Report ``at`` with some fields changed."""
        if self._progress is not None:
            self._progress(replace(at, **changes))  # type: ignore[arg-type]

    def warn(self, text: str) -> None:
        """Report a warning now, and again in the final report."""
        self.warnings.append(text)
        self.tell(TrainProgress("read", warning=text))
