"""Training of encoders; the only room that needs torch, which it imports when it is imported."""

from engine.training.loop import TrainProgress, TrainReport, train
from engine.training.settings import TrainSettings

__all__ = ["TrainProgress", "TrainReport", "TrainSettings", "train"]
