"""All measured indexes of vectors by name, the engine among them.

All get unit vectors and search by inner product. Each has the settings that its makers advise for this
size, or the best ones found. ``sweep`` has the settings that trade speed for recall, cheapest first.
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
