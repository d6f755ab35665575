"""The errors of a measurement; for wrong arguments there is the engine's own ``UsageError``.

EngineError
└── BenchError             a measurement could not be made
    └── WrongAnswerError       a method missed an image of the set, or found one that is not in it
"""

from engine.errors import EngineError


class BenchError(EngineError):
    """A measurement could not be made."""


class WrongAnswerError(BenchError):
    """A method missed an image of the set, or found one that is not in it; its times are void."""
