"""A limit on all the memory of a process, page cache included, by a control group of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError

_GROUPS = Path("/sys/fs/cgroup")
_V1 = _GROUPS / "memory"
# The shell joins the group and then becomes the command, so its memory is counted from the start.
_JOIN = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')
_ULIMIT = ("sh", "-c", 'ulimit -d "$0" && exec "$@"')  # kilobytes
_TRIES = 50


@dataclass(frozen=True, slots=True)
class Limit:
    """A way to run commands within a memory limit; put ``within`` before the command."""

    within: tuple[str, ...]
    how: str


@contextmanager
def limited(memory: int, *, fallback: bool = False) -> Iterator[Limit]:
    """Limit the commands of one context to ``memory`` bytes.

    It uses a control group of version 1 or 2 if this user may make one, else a scope of the user's
    systemd. If neither is possible, ``fallback`` limits anonymous memory alone; without it this raises
    ``BenchError``.
    """
    with contextlib.ExitStack() as stack:
        for make in (_version_1, _version_2, _systemd):
            found = make(memory, stack)
            if found is not None:
                yield found
                return
        if fallback:
            yield Limit(
                (*_ULIMIT, str(memory >> 10)),
                "RLIMIT_DATA: no control group can be made "
                "here, so only anonymous memory is bounded, and the page cache is not",
            )
            return
        raise BenchError(
            "the memory of a process cannot be limited here: run as root, or where systemd-run "
            "--user --scope works"
        )


def pressure() -> tuple[int, int]:
    """The peak bytes of this process's control group, and how often it reached its limit."""
    version_1, version_2 = None, None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            version_1 = _V1 / path.lstrip("/")
        elif not controllers:
            version_2 = _GROUPS / path.lstrip("/")
    if version_1 is not None:
        return _number(version_1 / "memory.max_usage_in_bytes"), _number(
            version_1 / "memory.failcnt"
        )
    if version_2 is None:
        return 0, 0
    events = (version_2 / "memory.events").read_text().split()
    peak = version_2 / "memory.peak"  # since Linux 5.19
    return _number(peak) if peak.exists() else 0, int(events[events.index("max") + 1])


def _number(file: Path) -> int:
    return int(file.read_text())


def _version_1(memory: int, stack: contextlib.ExitStack) -> Limit | None:
    return _group(_V1, "memory.limit_in_bytes", memory, stack, "a control group, version 1")


def _version_2(memory: int, stack: contextlib.ExitStack) -> Limit | None:
    try:
        if "memory" not in (_GROUPS / "cgroup.subtree_control").read_text().split():
            return None
    except OSError:
        return None
    return _group(_GROUPS, "memory.max", memory, stack, "a control group, version 2")


def _group(
    parent: Path, setting: str, memory: int, stack: contextlib.ExitStack, how: str
) -> Limit | None:
    if not (parent / "cgroup.procs").exists():
        return None
    group = parent / f"engine-bench-{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError:
        return None
    stack.callback(_remove, group)
    try:
        (group / setting).write_text(str(memory))
    except OSError:
        return None
    return Limit((*_JOIN, str(group / "cgroup.procs")), how)


def _remove(group: Path) -> None:
    """Remove a group; its last process disappears only a moment after it has ended."""
    for _ in range(_TRIES):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.02)


def _systemd(memory: int, stack: contextlib.ExitStack) -> Limit | None:
    if shutil.which("systemd-run") is None:
        return None
    command = ("systemd-run", "--user", "--scope", "--quiet", "-p", f"MemoryMax={memory}", "--")
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return Limit(command, "a scope of systemd") if tried.returncode == 0 else None
