"""The learning rate of each step."""

from __future__ import annotations

import math

from engine.training.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int, total: int, per_epoch: int) -> float:
    """The learning rate of step ``step``, from 0, of ``total`` steps in the whole run."""
    warmup = min(settings.warmup * per_epoch, total // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "cosine":
        turn = math.pi * (step - warmup) / (total - warmup)
        return settings.learning_rate * (1 + math.cos(turn)) / 2
    return settings.learning_rate
