"""Evaluation of encoders: how well they find copies, and how well their vectors separate classes."""

from engine.evaluation.evaluate import evaluate
from engine.evaluation.report import EvalReport, EvalSettings

__all__ = ["EvalReport", "EvalSettings", "evaluate"]
