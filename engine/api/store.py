"""``Store``: everything the command does, as one call each."""

from __future__ import annotations

# Imported for what it adds to records: notebooks show them as tables.
import engine.api.notebook  # noqa: F401
from engine.api.lookups import Lookups
from engine.api.reading import Reading
from engine.api.writing import Writing


class Store(Lookups, Reading, Writing):
    """One store directory, open.

    Any number of processes may have it open; one at a time writes, and takes the writer's lock with
    its first write. Each call of a reading method sees everything that was committed before it, by
    whatever process, and whole commits only. A ``Store`` is for one thread at a time: open one for each.

    A ``Store`` belongs to the process that opened it: in a forked child its methods raise
    ``StoreError``, and the child opens one of its own. One that is pickled, for a spawned worker, is
    opened again by path with the same ``read_only``, ``memory`` and ``wait``. It begins as a reader,
    whatever the original writes.

        with Store.open("photos.store", create=True) as store:
            report = store.ingest("photos/")
            result = store.lookup("query.jpg", k=10)
    """
