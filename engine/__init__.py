"""An embedded, disk-backed index for images: is this very image here, and what looks like it?"""

from engine.api import Store
from engine.errors import (
    EncoderError,
    EngineError,
    ImageError,
    SourceError,
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreLockedError,
    StoreNotFoundError,
    TrainingError,
    UsageError,
)
from engine.pixels import PackedBits
from engine.records import (
    BackupReport,
    CheckReport,
    ExportReport,
    IdenticalHit,
    ImageRecord,
    IngestReport,
    Kind,
    LookupResult,
    NearHit,
    OptimizeReport,
    Problem,
    RemoveReport,
    SimilarHit,
    StoreInfo,
)

__version__ = "0.1.0"

__all__ = [
    "BackupReport",
    "CheckReport",
    "EncoderError",
    "EngineError",
    "ExportReport",
    "IdenticalHit",
    "ImageError",
    "ImageRecord",
    "IngestReport",
    "Kind",
    "LookupResult",
    "NearHit",
    "OptimizeReport",
    "PackedBits",
    "Problem",
    "RemoveReport",
    "SimilarHit",
    "SourceError",
    "Store",
    "StoreDamagedError",
    "StoreError",
    "StoreFormatError",
    "StoreInfo",
    "StoreLockedError",
    "StoreNotFoundError",
    "TrainingError",
    "UsageError",
    "__version__",
]
