"""Reads lists of sources or images: one per line, or each ended by a null byte."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.errors import UsageError

MAX_LINE = 1 << 16  # bytes
_MAX_SHOWN = 200  # characters of a source, in a message
_READ_BYTES = 1 << 16
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def listed(path: str | os.PathLike[str], *, null: bool = False) -> Iterator[str]:
    """The lines of a file of paths, one by one; ``UsageError`` if it cannot be read.

    Lines have Unix or Windows line ends, and a byte-order mark before the first is removed. With
    ``null``, each path ends with a null byte, as ``find -print0`` writes them, and is not changed. A
    line of more than 64 KiB is not a path; its first 64 KiB and one byte are returned.
    """
    try:
        with Path("/dev/stdin" if path == "-" else path).open("rb") as file:
            for number, line in enumerate(_pieces(file, b"\0" if null else b"\n")):
                if not null:
                    line = _text(line, path) if number == 0 else line
                    line = line if len(line) > MAX_LINE else line.rstrip(b"\r")
                if line if null else line.strip():
                    yield os.fsdecode(line)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _pieces(file: io.BufferedReader, end: bytes) -> Iterator[bytes]:
    """The pieces before each ``end``, as soon as they are complete; a long piece is cut."""
    piece = bytearray()
    while data := file.read1(_READ_BYTES):
        *whole, rest = data.split(end)
        for part in whole:
            piece += part
            yield bytes(piece[: MAX_LINE + 1])
            piece.clear()
        piece += rest
        del piece[MAX_LINE + 1 :]
    if piece:
        yield bytes(piece)


def _text(line: bytes, path: str | os.PathLike[str]) -> bytes:
    """The first line without a byte-order mark."""
    if line.startswith(_UTF_16) and b"\0" in line:
        raise UsageError(f"{shown(path)} is a list in UTF-16: save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def check_list(path: str | os.PathLike[str], *, null: bool = False) -> None:
    """``UsageError`` for a list that cannot be read. Nothing is read from a pipe."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            if Path(path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return
        with Path(path).open("rb") as file:
            if not null:
                _text(file.readline(MAX_LINE), path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{shown(path)} cannot be read: {reason}") from None


def shown(text: str | os.PathLike[str], max_characters: int = _MAX_SHOWN) -> str:
    """A text for a message; a long one is cut in the middle, because its end says what to do."""
    text = os.fspath(text)
    half = max_characters // 2
    return text if len(text) <= max_characters else f"{text[:half]} … {text[-half:]}"
