"""``Store``, the public class. Each of its methods makes one call into another package."""

from engine.api.store import Store

__all__ = ["Store"]
