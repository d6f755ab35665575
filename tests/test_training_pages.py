"""Pages are kept while training, and given back afterwards.

What malloc does depends on all that a process allocated before, so each is tried in a new one.
"""

import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from engine.training import malloc_pages
from engine.training.malloc_pages import kept_pages

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(),
    reason="the C library is another one, or nothing says what is resident",
)
PROBE = """
import importlib.util, json, resource, sys
import torch
# From its file: the package would import all of training, which takes longer than the test.
spec = importlib.util.spec_from_file_location("malloc_pages", sys.argv[1])
malloc_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(malloc_pages)
kept_pages = malloc_pages.kept_pages

LARGE = 16 << 20  # float32: 64 MiB, which malloc otherwise maps and unmaps
USUAL = 2 << 20  # 8 MiB, which it keeps once it has seen some

def faults(times, size=LARGE):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
faults(1)
faults(8, USUAL)
usual = faults(16, USUAL)
said = {"usual": usual, "each": faults(4) / 4, "before": resident()}
try:
    with kept_pages():
        # The first ones may lie elsewhere each, until the heap is large enough for any.
        faults(24)
        said["inside"], said["kept"] = faults(6), resident()
        END
except ValueError:
    pass
said["given_back"], said["after"] = resident(), faults(4) / 4
faults(8, USUAL)
said["usual_after"] = faults(16, USUAL)
print(json.dumps(said))
"""
LARGE = 64 << 20


def probe(end: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("END", end), malloc_pages.__file__],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    said: dict[str, float] = json.loads(done.stdout)
    return said


@pytest.mark.usual
@pytest.mark.slow
@glibc
@pytest.mark.parametrize("end", ["pass", "raise ValueError"], ids=["ends", "fails"])
def test_pages_are_made_once_and_given_back_in_the_end(end: str) -> None:
    said = probe(end)
    assert said["each"] > 0
    assert said["inside"] < said["each"]  # six of them take no page more than one did
    assert said["kept"] - said["before"] > LARGE / 2
    assert said["given_back"] - said["before"] < LARGE / 2
    assert said["usual_after"] <= said["usual"] + 2048  # the pages of one of 16
    assert 4 * said["after"] > 1.5 * said["each"]  # of four, not the first alone: as it was


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def __init__(self, name: None) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", Musl)
    with kept_pages():
        pass
