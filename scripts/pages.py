"""Run the examples of Markdown pages and compare their output with the pages.

    python scripts/pages.py docs/tiers.md            compare; status 1 if a page is wrong
    python scripts/pages.py --write docs/tiers.md    put the output into the page

Two kinds of fenced blocks are run, in order, in the folder that ``scripts/examples.py`` makes:

console   lines after "$ " are commands for bash, and "> " continues one; the output is below
python    a program of its own; a block ``text`` right behind it is its output, and without one the
          program must print nothing

Other blocks only show text: ``text`` elsewhere, ``json``, ``toml``. ``bash`` is not allowed, because it
shows no output. An example that cannot run in a test has a line ``<!-- not run: REASON -->`` above it.

Times, sizes, scores and paths differ from machine to machine, so they are masked before the texts are
compared. A line ``...`` in a page stands for any lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN_HOME = "/home/me"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_ONLY_SHOWN = {"", "text", "json", "toml", "csv", "html"}
_TIMEOUT = 600  # seconds of one example: far more than any takes
_MASKS = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r'("milliseconds": ?\{)[^}]*\}'), r"\1…}"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"), "DATE"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\d[\d,.]* ?(µs|ms|s|min|h)\b"), "TIME"),
    (re.compile(r"\d[\d,.]* ?(B|[kKMGT]i?B|bytes)\b"), "SIZE"),
    (re.compile(r"\d[\d,.]*( images| vectors)?/s"), "RATE"),
    (re.compile(r'("time": ?)[\d.]+'), r"\1TIME"),
    (re.compile(r"(?<![\w.])-?[01]\.\d{2,}\b"), "SCORE"),
    (re.compile(r"\(\d[\d.]* ?%\)"), "(PERCENTILE)"),
    (re.compile(r'("percentile": ?)[\d.]+'), r"\1PERCENTILE"),
    (re.compile(r"[-─═]{3,}"), "---"),
    (re.compile(r" +"), " "),
]


@dataclass(frozen=True, slots=True)
class Example:
    """A runnable example of a page, with the output that the page shows."""

    line: int  # of the page, where the block begins
    program: Sequence[str]
    shown: str
    span: tuple[int, int]  # of the shown output in the page's text
    has_output: bool = True  # or a place for it

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.program[-1].strip().splitlines()[0]


class PageError(Exception):
    """A page has a form that this module does not accept."""


def examples(text: str) -> Iterator[Example]:
    """The examples of a page, in their order."""
    output_of: tuple[int, str] | None = None  # a Python block whose output may follow
    for block in _FENCE.finditer(text):
        language, body = block.groups()
        line = text.count("\n", 0, block.start()) + 1
        if output_of is not None:
            at, code = output_of
            follows = language == "text" and not text[at : block.start()].strip()
            yield _python(text, at, code, block if follows else None)
            output_of = None
            if follows:
                continue
        if _NOT_RUN.search(text[: block.start()]):
            continue
        if language == "console":
            yield from _commands(body, block.start(2), line)
        elif language == "python":
            output_of = block.end(), body
        elif language not in _ONLY_SHOWN:
            raise PageError(f"line {line}: a block of {language!r} is not of a kind that is run")
    if output_of is not None:
        yield _python(text, *output_of, None)


def _python(text: str, at: int, code: str, output: re.Match[str] | None) -> Example:
    program = (sys.executable, "-W", "ignore", "-c", code)
    line = text.count("\n", 0, at) + 1
    if output is None:
        return Example(line, program, "", (at, at), has_output=False)
    return Example(line, program, output.group(2), output.span(2))


def _commands(body: str, start: int, line: int) -> Iterator[Example]:
    """Each command of a console block with the lines below it."""
    lines = body.splitlines(keepends=True)
    if not lines or not lines[0].startswith("$ "):
        raise PageError(f"line {line}: a console block begins with a command, '$ …'")
    at, number = start, 0
    while number < len(lines):
        command, first = lines[number][2:], line + 1 + number
        at += len(lines[number])
        number += 1
        while number < len(lines) and lines[number].startswith("> "):
            command += lines[number][2:]
            at += len(lines[number])
            number += 1
        begin = at
        while number < len(lines) and not lines[number].startswith("$ "):
            at += len(lines[number])
            number += 1
        yield Example(first, ("bash", "-c", command), body[begin - start : at - start], (begin, at))


def run(example: Example, folder: Path) -> str:
    """The output of an example in a folder, with the folder's path as pages show it."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("ENGINE_STORE", "ENGINE_TESTS")
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "TZ": "UTC",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        example.program,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT,
        check=False,
    )
    text = done.stdout.decode(errors="replace").replace(str(folder.resolve()), SHOWN_HOME)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def agrees(shown: str, printed: str) -> bool:
    """Whether a page shows the output; ``...`` on a line of its own stands for any lines."""
    parts = [_masked(part) for part in re.split(r"^\.\.\.$\n?", shown, flags=re.MULTILINE)]
    pattern = r"(?s:.*)".join(re.escape(part) for part in parts)
    return re.fullmatch(pattern, _masked(printed)) is not None


def _masked(text: str) -> str:
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def check(page: Path, folder: Path, *, write: bool = False) -> list[str]:
    """Run a page's examples in a folder; returns a message for each whose output differs.

    With ``write``, put the output into the page instead.
    """
    text = page.read_text(encoding="utf-8")
    problems: list[str] = []
    changes: list[tuple[tuple[int, int], str]] = []
    for example in examples(text):
        printed = run(example, folder)
        if agrees(example.shown, printed):
            continue
        if write and example.has_output and "...\n" not in example.shown:
            changes.append((example.span, printed))
        else:
            problems.append(
                f"{page}:{example.line}: {example.name}\n"
                f"--- the page says\n{example.shown}--- it prints\n{printed}"
            )
    for (begin, end), printed in reversed(changes):
        text = text[:begin] + printed + text[end:]
    if changes:
        page.write_text(text, encoding="utf-8")
    return problems


def main(arguments: list[str]) -> int:
    """Check the named pages."""
    import examples as example_files

    write = "--write" in arguments
    pages = [Path(argument) for argument in arguments if argument != "--write"]
    if not pages:
        sys.exit(__doc__)
    wrong = False
    for page in pages:
        with tempfile.TemporaryDirectory(prefix="engine-pages-") as folder:
            work = Path(folder) / "me"
            example_files.make(work)
            for problem in check(page, work, write=write):
                print(problem)
                wrong = True
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
