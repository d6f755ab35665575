"""Measures the engine beside simpler ways to find an image, and beside others.

``engine bench`` calls four functions. ``plan`` checks the arguments, ``run`` measures, ``table`` shows
the results, and ``compare`` compares them with an earlier run. Rooms, from the ground up: ``harness``,
``data``, ``peers``, ``report``, ``suite``, and ``questions``. The last has scripts that each answer one
question; wheels leave it out.
"""

from .harness.errors import BenchError, WrongAnswerError
from .harness.sizes import parse_count
from .report.comparison import body as changes_of
from .report.comparison import compare
from .report.comparison import table as changes_table
from .report.results import Results
from .report.results_file import kept, load
from .report.summary import body as summary_of
from .report.summary import table
from .suite.plan import Plan, place, plan
from .suite.run import run

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
