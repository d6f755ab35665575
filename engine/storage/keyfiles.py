"""The files of RocksDB's folder as they lie on the disk: which count, and what of them is damaged.

RocksDB verifies what it reads, and a check that goes through all rows does not read all: filters,
rows that newer ones hide, properties. Here every block of every live table is read. RocksDB does not
read IDENTITY, its OPTIONS and LOG files and ``rocksdict-config.json`` for what the store holds, so
damage in them changes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StoreError
from engine.storage import rocklog
from engine.storage.files import open_regular, read_regular
from engine.storage.rocklog import Versions
from engine.storage.sst import TableFile

CURRENT = "CURRENT"
_TRIES = 20  # beside a writer that goes on
_TABLE = re.compile(r"(\d{6,20})\.sst")
_LOG = re.compile(r"(\d{6,20})\.log")
_MANIFEST = re.compile(r"MANIFEST-(\d{6,20})")
_OURS = re.compile(
    r"\d{6,20}\.(sst|log|dbtmp)|MANIFEST-\d{6,20}|OPTIONS-\d{6,20}(\.dbtmp)?|CURRENT|IDENTITY|LOCK"
    r"|LOG(\.old\.\d+)?|rocksdict-config\.json"
)
_MAX_CURRENT = 64


@dataclass(frozen=True, slots=True)
class Damaged:
    """One file that is not what it should be."""

    name: str
    what: str


def is_ours(name: str) -> bool:
    """Whether a file of RocksDB's folder can have this name."""
    return _OURS.fullmatch(name) is not None


def require_readable(folder: Path) -> None:
    """``StoreError`` where a file cannot be read for another reason than damage: it is not lost."""
    try:
        entries = [path for path in folder.iterdir() if is_ours(path.name)]
        for path in entries:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise StoreError(
                    f"{path} is not a regular file: a store holds no links; put the file itself there"
                )
            if path.name.startswith("LO"):  # RocksDB's own LOG and LOCK say nothing
                continue
            os.close(open_regular(path))
    except PermissionError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be read: Permission denied; run the command as the "
            f"owner of the store"
        ) from None
    except OSError:
        return  # damage, or a file that went meanwhile


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The tables (``sst``) or logs (``log``) of a folder by their number, ascending."""
    pattern = {"sst": _TABLE, "log": _LOG}[suffix]
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def current(folder: Path) -> Path | None:
    """The MANIFEST that CURRENT names; None where it is gone or does not name one that is there."""
    try:
        text = read_regular(folder / CURRENT, _MAX_CURRENT).decode("ascii")
    except (OSError, ValueError):
        return None
    name = text.removesuffix("\n")
    path = folder / name
    if text == name or not _MANIFEST.fullmatch(name) or not _is_file(path):
        return None
    return path


def newest(folder: Path) -> Path | None:
    """The newest MANIFEST that can be read to its end, whatever CURRENT says."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := _MANIFEST.fullmatch(p.name))}
    for _, path in sorted(found.items(), reverse=True):
        try:
            versions = rocklog.versions(path)
        except OSError:
            continue
        if versions.whole and not versions.torn:
            return path
    return None


def problems(folder: Path) -> list[Damaged]:
    """Read CURRENT, the MANIFEST and every live table, block by block; what is damaged.

    Beside a writer as well: tables do not change, and one that went meanwhile is not missed.
    """
    seen: dict[int, list[str]] = {}
    found: list[Damaged] = []
    for _ in range(_TRIES):
        path, versions = current(folder), Versions()
        if path is None:
            found = [Damaged(CURRENT, "it does not name a MANIFEST that is there")]
        else:
            try:
                versions = rocklog.versions(path)
            except OSError as error:
                found = [Damaged(path.name, f"it cannot be read: {error.strerror}")]
            else:
                found = _tables(folder, versions, seen)
                if not versions.whole:
                    found.insert(0, Damaged(path.name, "a record of it is damaged or gone"))
        if not found or (current(folder) == path and (path is None or _same(path, versions))):
            break
    return found


def _tables(folder: Path, versions: Versions, seen: dict[int, list[str]]) -> list[Damaged]:
    out = []
    for number in sorted(versions.live):
        name = f"{number:06d}.sst"
        if number not in seen:
            try:
                table = TableFile(folder / name)
            except OSError as error:
                out.append(Damaged(name, f"cannot be read: {error.strerror}"))
                continue
            try:
                seen[number] = table.verify()
            finally:
                table.close()
        out += [Damaged(name, what) for what in seen[number]]
    return out


def _same(path: Path, versions: Versions) -> bool:
    """Whether a MANIFEST still names the same tables."""
    try:
        return rocklog.versions(path).live == versions.live
    except OSError:
        return False


def table_bytes(folder: Path) -> int:
    """Bytes of the tables of a folder."""
    return sum(path.stat().st_size for path in numbered(folder, "sst").values())


def _is_file(path: Path) -> bool:
    try:
        fd = open_regular(path)
    except OSError:
        return False
    os.close(fd)
    return True
