"""``engine bench``: every tier at growing n, beside its alternatives, each in its own process.

A run is a list of stages. Each yields figures, and after each the results so far are written to disk.
Images and vectors are streamed, so the memory of a run does not grow with n.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from engine.storage.temp_folders import work_folder

from ..harness.machine import machine, versions
from ..harness.measurement import BYTES, Measurement, Skipped
from ..harness.memory_limit import limited
from ..harness.script import empty_folder
from ..peers.methods import ENGINE
from ..report import artifacts
from ..report.results import Results
from ..report.results_file import save
from .context import Context
from .plan import Plan
from .stages import Stage, stages_of

RUN = "run"  # the tier of figures of the whole run

_DEPTH = 8  # levels of folders in the work folder of a run


def run(
    plan: Plan,
    *,
    out: Path | None,
    progress: Callable[[int, int | None], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Results, list[str]]:
    """Measure; returns the results, and which files could not be written and why.

    ``out`` is a new or empty folder for the results; stores are made inside it and then removed. If it
    is None, stores are made in the system's folder for temporary files. ``progress(done, total)`` counts
    seconds by a guess made beforehand; ``note`` gets the name of the current stage. Ctrl-C ends the run,
    and ``out`` has the results so far.

    Raises ``UsageError`` if ``out`` cannot be used, ``WrongAnswerError`` if the engine gives a wrong
    answer, and ``BenchError`` if it cannot be measured.
    """
    if out is not None:
        empty_folder(out)
    started, clock = datetime.now(UTC), time.perf_counter()
    settings = plan.settings()
    found: list[Measurement] = []
    skipped: list[Skipped] = []

    def results(complete: bool) -> Results:
        return Results(
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - clock, 1),
            complete=complete,
            settings=settings,
            machine=machine(),
            versions=versions(),
            measurements=tuple(found),
            skipped=tuple(skipped),
        )

    with ExitStack() as stack:
        work = stack.enter_context(work_folder(out, "engine-bench-", _DEPTH))
        limit = None
        if plan.limit is not None:
            limit = stack.enter_context(limited(plan.limit, fallback=True))
            settings["memory_limit_by"] = limit.how
        context = Context(plan, work, limit)
        stages = stages_of(context)
        total = max(1, round(sum(stage.seconds for stage in stages)))
        before = 0.0
        try:
            for stage in stages:
                if note is not None:
                    note(stage.label)

                def advance(share: float, stage: Stage = stage) -> None:
                    if progress is not None:
                        progress(round(before + min(1.0, share) * stage.seconds), total)  # noqa: B023

                advance(0.0)
                for figure in stage.work(advance):
                    (found if isinstance(figure, Measurement) else skipped).append(figure)  # type: ignore[arg-type]
                before += stage.seconds
                if out is not None:
                    save(results(False), out)
            n = plan.sizes[-1] if plan.sizes else context.images
            found.append(Measurement(n, RUN, ENGINE, "rss", BYTES, (float(context.resident),)))
            done = results(True)
        except KeyboardInterrupt:
            if out is not None:
                save(results(False), out)  # without drawings: they take too long after a Ctrl-C
            raise
        except BaseException:
            if out is not None:
                artifacts.write(results(False), out)
            raise
    return done, artifacts.write(done, out) if out is not None else []
