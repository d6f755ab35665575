# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Pages are kept while training, and given back afterwards."""

import ctypes
import platform
import resource
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engine.training.pages import kept_pages

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
LARGE = 16 << 20  # float32: 64 MiB, which malloc otherwise maps and unmaps


def faults(times: int) -> int:
    """Pages that the kernel made for a large tensor, made and dropped some times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(LARGE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@glibc
def test_pages_are_made_once() -> None:
    each = faults(1)
    with kept_pages():
        # At first each may lie elsewhere; without it there is no round with so few.
        assert min(faults(4) for _ in range(10)) < each
    assert faults(4) > 2 * each  # as it was


@glibc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it is read from /proc")
def test_what_is_free_is_given_back_in_the_end() -> None:
    faults(1)
    before = resident()
    with kept_pages():
        faults(1)
        assert resident() - before > 2 * LARGE
    assert resident() - before < LARGE


@glibc
def test_also_after_a_failure() -> None:
    each = faults(1)
    with pytest.raises(ValueError, match="this"), kept_pages():
        raise ValueError("this")
    assert faults(4) > 2 * each


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def __init__(self, name: None) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", Musl)
    with kept_pages():
        pass
