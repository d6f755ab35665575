"""Training of encoders. This is the only package that imports torch."""

from engine.training.recipes import RECIPES, resolve
from engine.training.report import TrainProgress, TrainReport
from engine.training.resume import saved_run
from engine.training.run import train
from engine.training.settings import TrainSettings
from engine.training.teacher import Teacher

__all__ = [
    "RECIPES",
    "Teacher",
    "TrainProgress",
    "TrainReport",
    "TrainSettings",
    "resolve",
    "saved_run",
    "train",
]
