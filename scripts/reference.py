"""Write the reference pages: docs/cli.md from every ``--help``, docs/python.md from the docstrings.

python scripts/reference.py            write them
python scripts/reference.py --check    status 1 if they are out of date
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import engine
from engine.cli.app import app
from engine.cli.app import main as run_command

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 90  # of a signature on one line
METHODS = {
    "Open and close": ["open", "close", "refresh", "path", "has_encoder", "has_given_vectors"],
    "Look up": [
        *("lookup", "lookup_many", "find_identical", "search_vectors", "encode", "encode_text"),
    ],
    "Read": ["get", "sources", "records", "thumbnail", "vectors", "info"],
    "Fill and change": ["ingest", "plan", "update", "remove"],
    "Look after": [
        *(
            "optimize",
            "reembed",
            "discard_reembed",
            "check",
            "check_at",
            "salvage",
            "backup",
            "export",
        )
    ],
}
INSIDE = {"session", "index"}  # for tools that look inside a store; they may change
SPECIAL = {
    "len(store)": "__len__",
    "query in store": "__contains__",
    "store[id]": "__getitem__",
    "for record in store": "__iter__",
}
GROUPS = {
    "What lookups return": ["LookupResult", "IdenticalHit", "NearHit", "SimilarHit"],
    "What a store knows": ["ImageRecord", "Kind", "StoreInfo"],
    "Reports": [
        *("IngestReport", "IngestPlan", "RemoveReport", "MissingBelow", "OptimizeReport"),
        "ReembedReport",
        *("CheckReport", "Problem", "BackupReport", "ExportReport"),
    ],
    "Images in memory": ["PackedBits"],
    "Encoders": [
        *("import_encoder", "ImportReport"),
        *("list_encoders", "EncoderList", "EncoderInfo", "ImporterInfo"),
    ],
}


def command_page() -> str:
    """The text of docs/cli.md."""
    out = [
        "# The command line",
        "",
        "This page is written from the command's own `--help` by `scripts/reference.py`.",
        "",
        _help([]),
    ]
    for name in _commands():
        out += [f"## engine {name}", "", _help([name])]
    return "\n".join(out)


def python_page() -> str:
    """The text of docs/python.md."""
    out = [
        "# The Python interface",
        "",
        "This page is written from the docstrings by `scripts/reference.py`. Import the names from",
        "`engine`.",
        "",
        "## Store",
        "",
        _text(engine.Store),
    ]
    for heading, names in METHODS.items():
        out += [f"### {heading}", ""]
        for name in names:
            out += _member(engine.Store, name)
    out += ["### As a container", ""]
    for form, name in SPECIAL.items():
        out += [f"**`{form}`**", "", _text(getattr(engine.Store, name))]
    listed = {"Store", "__version__"}
    for heading, names in GROUPS.items():
        out += [f"## {heading}", ""]
        for name in names:
            listed.add(name)
            out += _class(name, getattr(engine, name))
    out += ["## Errors", "", *_errors(engine.EngineError, 0), ""]
    errors = {name for name in engine.__all__ if name.endswith("Error")}
    missing = set(engine.__all__) - listed - errors
    missing |= (
        set(_public(engine.Store)) - INSIDE - {n for names in METHODS.values() for n in names}
    )
    if missing:
        sys.exit(f"reference: no place for {', '.join(sorted(missing))}: add it to {__file__}")
    return "\n".join(out)


def _commands() -> list[str]:
    return [
        info.name or (info.callback.__name__ if info.callback else "")
        for info in app.registered_commands
    ]


def _help(words: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = run_command([*words, "--help"])
    if status:
        sys.exit(f"reference: 'engine {' '.join(words)} --help' ends with {status}")
    lines = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
    return f"```text\n{lines.strip()}\n```\n"


def _class(name: str, what: Any) -> Iterator[str]:
    if inspect.isfunction(what):
        yield from (f"### {name}", "", "```text", _signature(name, what, bound=True), "```", "")
        yield _text(what)
        return
    yield from (f"### {name}", "", _text(what))
    if isinstance(what, type) and issubclass(what, Enum):
        yield from [f"- `{name}.{one.name}` = `{one.value!r}`" for one in what]
        yield ""
        return
    if dataclasses.is_dataclass(what):
        yield from ("| field | type |", "|---|---|")
        for field in dataclasses.fields(what):
            yield f"| `{field.name}` | `{_type(field.type)}` |"
        yield ""
    else:
        yield from ("```text", _signature(name, what, bound=True), "```", "")
    for member in _public(what):
        if not inspect.ismemberdescriptor(inspect.getattr_static(what, member)):
            yield from _member(what, member)


def _public(what: type) -> list[str]:
    """The names that a class or its bases in the engine define, in order."""
    found: dict[str, None] = {}
    for base in reversed(what.__mro__):
        if base.__module__.startswith("engine"):
            found |= {name: None for name in vars(base) if not name.startswith("_")}
    return list(found)


def _member(owner: type, name: str) -> Iterator[str]:
    what = inspect.getattr_static(owner, name)
    called = f"store.{name}" if owner is engine.Store else f".{name}"
    if isinstance(what, property):
        kind = _type(inspect.signature(what.fget).return_annotation) if what.fget else ""
        yield from (f"**`{called}`** → `{kind}`", "", _text(what))
        return
    is_static = isinstance(what, classmethod | staticmethod)
    called = f"{owner.__name__}.{name}" if is_static else called
    yield from ("```text", _signature(called, getattr(owner, name), bound=is_static), "```", "")
    yield _text(getattr(owner, name))


def _signature(called: str, what: Any, *, bound: bool) -> str:
    signature = inspect.signature(what)
    parameters = list(signature.parameters.values())[0 if bound else 1 :]
    parts: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(p.startswith("*") for p in parts):
            parts.append("*")
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = (
            "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        )
        parts.append(f"{star}{parameter.name}: {_type(parameter.annotation)}{default}")
    returned = signature.return_annotation
    end = f" -> {_type(returned)}" if returned not in (signature.empty, None, "None") else ""
    line = f"{called}({', '.join(parts)}){end}"
    if len(line) <= WIDTH:
        return line
    return f"{called}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _default(value: object) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _type(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return re.sub(r"\b(npt|np)\.", "", text or str(annotation)).replace(
        "os.PathLike[str]", "PathLike"
    )


def _text(what: Any) -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(what) or ""
    if not text:
        sys.exit(f"reference: {what} has no docstring")
    paragraphs = []
    for paragraph in re.sub(r"``([^`]+)``", r"`\1`", text).split("\n\n"):
        is_code = all(line.startswith("    ") for line in paragraph.splitlines())
        paragraphs.append(f"```text\n{textwrap.dedent(paragraph)}\n```" if is_code else paragraph)
    return "\n\n".join(paragraphs) + "\n"


def _errors(error: type, depth: int) -> Iterator[str]:
    if error.__name__ in engine.__all__:
        first = " ".join((inspect.getdoc(error) or "").split())
        line = re.sub(r"``([^`]+)``", r"`\1`", first)
        yield f"{'    ' * depth}- `{error.__name__}`: {line}"
    for below in sorted(error.__subclasses__(), key=lambda one: one.__name__):
        yield from _errors(below, depth + 1)


PAGES = {"cli.md": command_page, "python.md": python_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    os.environ.update(COLUMNS="80", NO_COLOR="1", TERM="dumb")
    wrong = False
    for name, page in PAGES.items():
        text = page()
        if arguments != ["--check"]:
            (DOCS / name).write_text(text, encoding="utf-8")
        elif (DOCS / name).read_text(encoding="utf-8") != text:
            print(f"docs/{name} is out of date: run scripts/reference.py")
            wrong = True
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
