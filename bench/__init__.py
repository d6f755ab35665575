"""Measures the engine beside simpler ways to find an image, through its public API.

``run`` measures and ``table`` shows it; both are what ``engine bench`` calls. The modules
``near``, ``exact_store``, ``cold_exact``, ``memory_growth``, ``exact_memory``, ``cold_lookup`` and
``similar_photos`` are scripts of their own.
"""

from .errors import BenchError, WrongAnswerError
from .identical import run
from .report import BenchReport, Row, table
from .sizes import parse_count

__all__ = ["BenchError", "BenchReport", "Row", "WrongAnswerError", "parse_count", "run", "table"]
