"""``Store``: everything that the command does, one method each."""

from __future__ import annotations

# The import lets notebooks show records as tables.
import engine.api.notebook  # noqa: F401
from engine.api.lookups import Lookups
from engine.api.reading import Reading
from engine.api.reembedding import Reembedding
from engine.api.writing import Writing


class Store(Lookups, Reading, Writing, Reembedding):
    """An open store directory.

    Any number of processes may open it. One at a time writes; its first write takes the writer's lock.
    Each reading call sees everything that any process committed before it, and whole commits only. A
    ``Store`` is for one thread at a time, so open one per thread.

    A ``Store`` belongs to the process that opened it. In a forked child its methods raise
    ``StoreError``, and the child must open its own. Unpickling a ``Store``, in a spawned worker, opens
    the path again with the same ``read_only``, ``memory`` and ``wait``. The new one begins as a reader,
    even if the original writes.

        with Store.open("photos.store", create=True) as store:
            report = store.ingest("photos/")
            result = store.lookup("query.jpg", k=10)
    """
