"""The machine and the software of a measurement: processor, memory, versions."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib import metadata
from pathlib import Path

from engine import __version__

_PACKAGES = (
    *("numpy", "rocksdict", "xxhash", "faiss-cpu", "onnxruntime", "Pillow", "pdqhash"),
    *("lmdb", "hnswlib", "usearch", "lancedb", "zvec"),  # which others may lack
)


def machine() -> dict[str, str | int]:
    """Processor model, cores this process may use, RAM in bytes, operating system."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """The versions of Python, the engine, its libraries and its peers."""
    found = {"python": platform.python_version(), "engine": __version__}
    found["SQLite"] = sqlite3.sqlite_version
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
