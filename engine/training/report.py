"""What a training run reports: where it is while it runs, and what it did at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.records import Rejection


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


class Reporter:
    """Tells a caller where a run is; ``warnings`` are all that were told."""

    def __init__(self, progress: Callable[[TrainProgress], None] | None) -> None:
        self._progress = progress
        self.warnings: list[str] = []

    def tell(self, at: TrainProgress, **changes: float | None) -> None:
        """Report ``at`` with ``changes`` of its fields."""
        if self._progress is not None:
            self._progress(replace(at, **changes))  # type: ignore[arg-type]

    def warn(self, text: str) -> None:
        """Tell it now, and again in the report."""
        self.warnings.append(text)
        self.tell(TrainProgress("read", warning=text))
