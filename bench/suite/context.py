"""The context that the stages of one run share: the plan, the work folder, the memory limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..harness.memory_limit import Limit
from ..harness.process import Finished, run_child
from .plan import Plan


@dataclass(slots=True)
class Context:
    """One run, as its stages see it."""

    plan: Plan
    work: Path
    limit: Limit | None
    resident: int = 0  # the largest resident set of the engine's processes, bytes
    images: int = 0  # in an existing store

    @property
    def within(self) -> tuple[str, ...]:
        """The command that puts the engine's processes within the limit."""
        return self.limit.within if self.limit is not None else ()

    @property
    def memory_option(self) -> str:
        """The option that limits a set in memory, in words."""
        limited = self.plan.limit is not None and self.plan.memory * 2 <= self.plan.limit
        return "half of --memory-limit" if limited else "--memory allows"

    @property
    def is_encoded(self) -> bool:
        """Whether every image gets a vector."""
        return self.plan.images is not None and self.plan.images.encoder != "none"

    @property
    def vectors_note(self) -> str:
        """A note that describes the vectors."""
        if self.plan.vectors is not None:
            return f"vectors of {self.plan.vectors.name}"
        return "made, clustered vectors of 128 dimensions, no embeddings"

    def set_spec(self, n: int) -> dict[str, Any]:
        """The first ``n`` images of the set, for a child."""
        return {"n": n, "memory_bytes": self.plan.memory, "set": self.plan.spec}

    def child(
        self, module: str, spec: dict[str, Any], done: Callable[[int], None] | None = None
    ) -> Finished:
        """Run a process of the engine's own, within the limit."""
        ended = run_child(module, spec, done, within=self.within)
        self.saw(ended)
        return ended

    def saw(self, *ended: Finished) -> None:
        """Record the largest resident set of the engine's processes."""
        self.resident = max(self.resident, *(one.resident_peak for one in ended))
