"""The memory of this or another process (Linux; 0 where there is no /proc)."""

from __future__ import annotations

from pathlib import Path


def anonymous(pid: int | str = "self") -> int:
    """Anonymous memory of a process now, in bytes: its heap and stacks, no mapped files."""
    return _field(f"/proc/{pid}/status", "RssAnon")


def peak_resident(pid: int | str = "self") -> int:
    """Peak resident set of a process since it began, in bytes, mapped pages included."""
    return _field(f"/proc/{pid}/status", "VmHWM")


def available() -> int:
    """The bytes that new processes can take without swapping."""
    return _field("/proc/meminfo", "MemAvailable")


def _field(file: str, name: str) -> int:
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux, or the process has just ended
        pass
    return 0
