"""Reads files that may be compressed as streams of plain bytes; the first bytes show the format."""

from __future__ import annotations

import bz2
import importlib
import io
import lzma
import sys
import zlib
from typing import IO, TYPE_CHECKING, Any, Protocol

from engine.errors import SourceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 1 << 18
_READ_BYTES = 1 << 16  # bytes read from the compressed file at a time
_MAX_PADDING = 64 << 20  # bytes of zeros between streams that are skipped at most
_MIN_MEMORY = 16 << 20  # bytes: all but the highest levels take this much, even for small files
CUT = "its compressed data was cut short"


class Decompressor(Protocol):
    """One compressed stream, with the interface of ``bz2``, ``lzma`` and ``zstd``."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether it needs more input to give more output."""

    @property
    def unused_data(self) -> bytes:
        """The input after the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Take ``data``, and return up to ``max_length`` decompressed bytes."""


class _Gunzip:
    """Gives zlib's decompressor the interface of ``Decompressor``."""

    def __init__(self) -> None:
        # 31 reads gzip, and verifies its checksum.
        self._stream = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max(max_length, 0))


_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    # A skippable frame, which pzstd writes before each other frame.
    **{bytes([first]) + b"\x2a\x4d\x18": "zstd" for first in range(0x50, 0x60)},
}
_SIGNATURE_BYTES = max(map(len, _SIGNATURES))


def _compression(head: bytes) -> str | None:
    """The compression of a stream that begins with ``head``; None if it is not compressed."""
    return next((how for sign, how in _SIGNATURES.items() if head.startswith(sign)), None)


def decompressor(how: str, memory: int) -> Decompressor:
    """A decompressor for "gzip", "bzip2", "xz" or "zstd" that uses at most ``memory``, or 16 MiB.

    The limit is needed because a file may ask for a dictionary of gigabytes.
    """
    memory = max(memory, _MIN_MEMORY)
    if how == "gzip":
        return _Gunzip()
    if how == "bzip2":
        return bz2.BZ2Decompressor()
    if how == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)
    module = zstd()
    window = max(10, min(memory.bit_length() - 1, 30))
    options = {module.DecompressionParameter.window_log_max: window}
    made: Decompressor = module.ZstdDecompressor(options=options)
    return made


def plain(file: IO[bytes], memory: int) -> tuple[IO[bytes], Decompressed | None]:
    """A stream of the file's plain bytes, and its decompressor; None if the file is not compressed."""
    how = _compression(file.read(_SIGNATURE_BYTES))
    file.seek(0)
    if how is None:
        return file, None
    stream = Decompressed(file, how, memory)
    return io.BufferedReader(stream, BUFFER_BYTES), stream


class Decompressed(io.RawIOBase):
    """The content of a compressed file: one stream, or several after each other."""

    def __init__(self, file: IO[bytes], how: str, memory: int) -> None:
        """``how`` is the compression of the first stream, as in ``decompressor``."""
        self._file = file
        self._memory = memory
        self._stream = decompressor(how, memory)
        self._ended = False
        self.remains = False  # whether data that is not compressed follows the streams

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes into ``buffer`` and return their number; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while True:
            data, at_end = b"", False
            if self._stream.eof:
                data = self._next_stream()
                if not data:
                    return 0
            elif self._stream.needs_input:
                data = self._file.read(_READ_BYTES)
                at_end = not data
            out = self._stream.decompress(data, len(view))
            if out:
                view[: len(out)] = out
                return len(out)
            # A stream may consume its input and return nothing, without having asked for more.
            if at_end and not self._stream.eof:
                raise EOFError(CUT)

    def _next_stream(self) -> bytes:
        """Start the next stream and return its first bytes; empty if there is none."""
        if self._ended:
            return b""
        # Zeros are padding.
        data = self._stream.unused_data.lstrip(b"\0")
        for _ in range(_MAX_PADDING // _READ_BYTES):
            more = b"" if len(data) >= _SIGNATURE_BYTES else self._file.read(_READ_BYTES)
            if not more:
                break
            data = (data + more).lstrip(b"\0")
        how = _compression(data)
        if how is None:
            self._ended, self.remains = True, bool(data)
            return b""
        self._stream = decompressor(how, self._memory)
        return data


def damage() -> tuple[type[Exception], ...]:
    """The exceptions that decompressing damaged data may raise."""
    module = sys.modules.get(_ZSTD)
    own = (module.ZstdError,) if module is not None else ()
    return (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, MemoryError, *own)


_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def zstd() -> Any:
    """The zstd module, imported on demand. Python itself has one from 3.14 on."""
    try:
        return importlib.import_module(_ZSTD)
    except ImportError:
        raise SourceError(
            "is compressed with zstd, which needs backports.zstd: pip install backports.zstd",
            retryable=True,
        ) from None


def line_of(error: Exception) -> str:
    """The message of an error in one line; the name of its class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
