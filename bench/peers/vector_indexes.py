"""Every index of vectors that is measured, the engine among them, by its name.

All get unit vectors and search by inner product. What each is set to is what its makers advise for
this size, or what was found to be best; ``sweep`` is what is turned for recall, cheapest first.
"""

from __future__ import annotations

from .engine_index import ENGINE, Engine
from .faiss_indexes import FaissFlat, FaissIvf
from .hnswlib_index import Hnswlib
from .lancedb_index import LanceDb
from .usearch_index import Usearch
from .vector_index import Index
from .zvec_indexes import ZvecDiskAnn, ZvecHnsw

INDEXES: dict[str, type[Index]] = {
    kind.name: kind
    for kind in (Engine, Hnswlib, Usearch, LanceDb, ZvecHnsw, ZvecDiskAnn, FaissFlat, FaissIvf)
}

PEERS = tuple(name for name in INDEXES if name != ENGINE)
