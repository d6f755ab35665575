"""Evaluation of encoders: do they find copies again, and do their vectors tell classes apart?"""

from engine.evaluation.evaluate import EvalReport, EvalSettings, evaluate

__all__ = ["EvalReport", "EvalSettings", "evaluate"]
