"""An embedded, disk-backed index for images: is this very image here, and what looks like it?"""

from engine import address_space

address_space.require()  # before anything that would end the process without a word

from engine.api import Store  # noqa: E402
from engine.errors import (  # noqa: E402
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
from engine.pixels import PackedBits  # noqa: E402
from engine.records import (  # noqa: E402
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
