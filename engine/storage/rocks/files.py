"""RocksDB's files on disk: which of them are live, and which parts of them are damaged.

RocksDB verifies the blocks that it reads. A check that reads all rows still skips filters, properties,
and rows that newer ones hide. This module reads every block of every live table. The content of a store
does not depend on IDENTITY, the OPTIONS and LOG files and ``rocksdict-config.json``, so damage in them
changes nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.storage import file_names, nofollow
from engine.storage.durable import cannot_read, is_in_the_way, open_regular, read_regular
from engine.storage.rocks import log
from engine.storage.rocks.log import Versions
from engine.storage.rocks.sst import TableFile

CURRENT = "CURRENT"
_TRIES = 20  # while a writer continues
_TABLE = re.compile(r"(\d{6,20})\.sst")
_LOG = re.compile(r"(\d{6,20})\.log")
_MANIFEST = re.compile(r"MANIFEST-(\d{6,20})")
_MAX_CURRENT = 64


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged file."""

    name: str
    what: str


def require_readable(folder: Path) -> None:
    """Raise ``StoreError`` if a file cannot be read for a reason that is not damage."""
    try:
        found = nofollow.entries(folder.parent, folder.name)
    except OSError as error:
        raise cannot_read(folder, error) from None
    for entry in found:
        name = f"{folder.name}/{entry.name}"
        # RocksDB's own LOG and LOCK have no data of the store.
        if file_names.ROCKSDB.fullmatch(entry.name) and not entry.name.startswith("LO"):
            try:
                os.close(nofollow.open_file(folder.parent, name))
            except OSError as error:
                if is_in_the_way(error):
                    raise cannot_read(folder.parent / name, error) from None
        elif not entry.is_folder:
            # A link is foreign, whatever its name.
            nofollow.status(folder.parent, name)


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the tables (``sst``) or logs (``log``) of a folder by number, ascending."""
    pattern = {"sst": _TABLE, "log": _LOG}[suffix]
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def current(folder: Path) -> Path | None:
    """Return the MANIFEST that CURRENT names; None if either is missing or malformed."""
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
    """Return the newest MANIFEST that can be read to its end, whatever CURRENT says."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := _MANIFEST.fullmatch(p.name))}
    for _, path in sorted(found.items(), reverse=True):
        try:
            versions = log.versions(path)
        except OSError:
            continue
        if versions.whole and not versions.torn:
            return path
    return None


def problems(folder: Path) -> list[Damaged]:
    """Read CURRENT, the MANIFEST and every live table, block by block; return what is damaged.

    This works beside a writer too: tables do not change, and one that was deleted since is not missed.
    """
    seen: dict[int, list[str]] = {}
    found: list[Damaged] = []
    for _ in range(_TRIES):
        path, versions = current(folder), Versions()
        if path is None:
            found = [Damaged(CURRENT, "it does not name a MANIFEST that is there")]
        else:
            try:
                versions = log.versions(path)
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
                if is_in_the_way(error):
                    raise cannot_read(folder / name, error) from None
                out.append(Damaged(name, f"cannot be read: {error.strerror}"))
                continue
            try:
                seen[number] = table.verify()
            finally:
                table.close()
        out += [Damaged(name, what) for what in seen[number]]
    return out


def _same(path: Path, versions: Versions) -> bool:
    """Return whether a MANIFEST still names the same tables."""
    try:
        return log.versions(path).live == versions.live
    except OSError:
        return False


def table_bytes(folder: Path) -> int:
    """Return the bytes of the tables in a folder."""
    found = [f"{folder.name}/{path.name}" for path in numbered(folder, "sst").values()]
    # A writer may delete tables at the same time.
    return sum(nofollow.size(folder.parent, name) or 0 for name in found)


def _is_file(path: Path) -> bool:
    try:
        fd = open_regular(path)
    except OSError:
        return False
    os.close(fd)
    return True
