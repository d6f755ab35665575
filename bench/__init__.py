"""Measures the engine beside simpler ways to find an image, and beside others, through its public API.

``plan`` checks what is asked for, ``run`` measures it, ``table`` shows it and ``compare`` puts it
beside an earlier run: these are what ``engine bench`` calls. The other modules that have a ``main``
are scripts of their own, a question each.
"""

from .comparison import body as changes_of
from .comparison import compare
from .comparison import table as changes_table
from .errors import BenchError, WrongAnswerError
from .planned import Plan, place, plan
from .results import Results, kept, load
from .sizes import parse_count
from .suite import run
from .summary import body as summary_of
from .summary import table

__all__ = [
    "BenchError",
    "Plan",
    "Results",
    "WrongAnswerError",
    "changes_of",
    "changes_table",
    "compare",
    "kept",
    "load",
    "parse_count",
    "place",
    "plan",
    "run",
    "summary_of",
    "table",
]
