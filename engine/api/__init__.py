"""``Store``, the class that people use: each of its methods is one call into a room."""

from engine.api.store import Store

__all__ = ["Store"]
