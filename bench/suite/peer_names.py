"""The peers of the engine in a run, by name."""

from __future__ import annotations

from importlib.util import find_spec

from engine.errors import UsageError, how_to_install

from ..peers.faiss_indexes import FLAT
from ..peers.key_tables import LMDB, SQLITE
from ..peers.vector_indexes import INDEXES, PEERS

IDENTICAL_PEERS = (SQLITE, LMDB)
SIMILAR_PEERS = tuple(name for name in PEERS if name != FLAT)  # the flat index is always measured
NEAR_PEERS = ("pdqhash", "imagededup")
EVERY_PEER = (*IDENTICAL_PEERS, *NEAR_PEERS, *SIMILAR_PEERS)


def parse_peers(text: str) -> tuple[str, ...]:
    """The names in ``--peers``; ``UsageError`` if one is unknown."""
    if text in ("", "none"):
        return ()
    names = EVERY_PEER if text == "all" else tuple(name.strip() for name in text.split(","))
    known = {name.lower(): name for name in EVERY_PEER}
    for name in names:
        if name.lower() not in known:
            raise UsageError(
                f"there is no peer called {name!r}: all, none, or some of {', '.join(known)}"
            )
    return tuple(dict.fromkeys(known[name.lower()] for name in names))


def missing(peer: str) -> str | None:
    """The reason why a peer cannot be measured here; None if it can."""
    if peer == "imagededup":
        return "it compares all images of a folder with each other and has no lookup of one"
    module = {SQLITE: "sqlite3", LMDB: "lmdb", "pdqhash": "pdqhash"}.get(peer)
    if module is None:
        module = INDEXES[peer].module
    if find_spec(module) is None:
        return f"{module} is not installed: {how_to_install('peers')}"
    return None
