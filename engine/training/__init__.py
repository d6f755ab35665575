"""Training of encoders; the only room that needs torch, which it imports when it is imported."""

from engine.training.loop import TrainProgress, TrainReport, saved_run, train
from engine.training.recipes import RECIPES, resolve
from engine.training.settings import TrainSettings

__all__ = [
    "RECIPES",
    "TrainProgress",
    "TrainReport",
    "TrainSettings",
    "resolve",
    "saved_run",
    "train",
]
