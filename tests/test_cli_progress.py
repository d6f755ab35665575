"""Progress of long work: quiet for a minute, a bar on a terminal."""

import io
import itertools
import sys

import pytest
from helpers import mask, save

from engine import Store
from engine.cli import progress
from engine.cli.app import main


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_may_come_later_and_without_plain_lines(clock, capsys, monkeypatch):
    with progress.Progress("lookup", plain=False, bar_after=1.0) as tell:
        for second in range(300):
            clock[0] = 1000 + second
            tell(second, None)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    clock[0] = 1000.0
    with progress.Progress("lookup", plain=False, bar_after=1.0) as tell:
        clock[0] = 1000.9
        tell(5, 100)
        assert terminal.getvalue() == ""
        clock[0] = 1001
        tell(50, 100)
        # What is written while it is shown goes where it would go without.
        print("a result")
    assert "50 of 100 images" in terminal.getvalue()
    assert "a result" not in terminal.getvalue()
    assert capsys.readouterr().out == "a result\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_long_lookup_has_a_bar_where_its_results_go_elsewhere(monkeypatch, tmp_path, is_terminal):
    for number in range(3):
        save(tmp_path / f"in/{number}.png", mask(number))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "in")
    seconds = itertools.count(1000, 2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setenv("TERM", "xterm")
    output, errors = Terminal() if is_terminal else io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    words = [str(tmp_path / "in"), "--id", "1", "--json", "--store", str(tmp_path / "store")]
    assert main(["lookup", *words]) == 0
    assert len(output.getvalue().splitlines()) == 4
    if is_terminal:
        assert errors.getvalue() == ""
    else:
        assert "of 4 images" in errors.getvalue()
