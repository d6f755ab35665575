"""Progress of long work: quiet for a minute, a bar on a terminal."""

import io
import sys

import pytest

from engine.cli import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    times = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    return times


def test_progress_is_quiet_for_a_minute_and_then_one_plain_line_a_minute(clock, capsys):
    with progress.Progress("ingest") as tell:
        for second in range(120):
            clock[0] = 1000 + second
            tell(10 * second, 2400)
            if second == 59:
                assert capsys.readouterr().err == ""
    written = capsys.readouterr()
    assert written.err == "ingest: 600 of 2,400 images, 10/s, 3:00 left\n"
    assert written.out == ""


def test_progress_without_a_total_gives_no_time_that_is_left(clock, capsys):
    with progress.Progress("ingest", unit="rows") as tell:
        tell(0, None)
        clock[0] += 61
        tell(6100, None)
    assert capsys.readouterr().err == "ingest: 6,100 rows, 100/s\n"


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys):
    with progress.Progress("ingest") as tell:
        tell(1_000_000, 1_007_200)
        clock[0] += 100
        tell(1_000_100, 1_007_200)
    assert capsys.readouterr().err.endswith(" 1/s, 1:58:20 left\n")


def test_on_a_terminal_progress_is_a_bar(clock, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress("ingest") as tell:
        tell(0, 100)
        clock[0] += 1
        tell(50, 100)
    assert "50 of 100 images" in terminal.getvalue()
    assert capsys.readouterr().out == ""
