"""Evaluation of encoders: do they find copies again, and do their vectors tell classes apart?"""

from engine.evaluation.evaluate import evaluate
from engine.evaluation.report import EvalReport, EvalSettings

__all__ = ["EvalReport", "EvalSettings", "evaluate"]
