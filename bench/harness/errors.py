"""What can go wrong in a measurement; wrong arguments are the engine's own ``UsageError``.

EngineError
└── BenchError             a measurement could not be made
    └── WrongAnswerError       a method did not find what is there, or found what is not
"""

from engine.errors import EngineError


class BenchError(EngineError):
    """A measurement could not be made."""


class WrongAnswerError(BenchError):
    """A method did not find what is there, or found what is not; its times are worth nothing."""
