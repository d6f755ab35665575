"""An embedded, disk-backed index for images: is this very image here, and what looks like it?"""

import os

# ONNX Runtime 1.29 and later would report its use over the network and leave an identifier in the folder
# for temporary files. A user who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Type checkers take it for true. Importing typing would take milliseconds.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from engine.api import Store
    from engine.api.import_encoder import import_encoder
    from engine.encoders.importers.request import ImportReport
    from engine.encoders.overview import (
        EncoderInfo,
        EncoderList,
        ImporterInfo,
        list_encoders,
    )
    from engine.errors import (
        EncoderError,
        EngineError,
        ImageError,
        MissingError,
        SourceError,
        StoreDamagedError,
        StoreError,
        StoreFormatError,
        StoreLockedError,
        StoreNotFoundError,
        TrainingError,
        UnknownImageError,
        UsageError,
    )
    from engine.images.packed_bits import PackedBits
    from engine.records import (
        BackupReport,
        CheckReport,
        ExportReport,
        IdenticalHit,
        ImageRecord,
        IngestPlan,
        IngestReport,
        Kind,
        LookupResult,
        MissingBelow,
        NearHit,
        OptimizeReport,
        Problem,
        ReembedReport,
        RemoveReport,
        SimilarHit,
        StoreInfo,
    )

__version__ = "0.1.0"

__all__ = [
    "BackupReport",
    "CheckReport",
    "EncoderError",
    "EncoderInfo",
    "EncoderList",
    "EngineError",
    "ExportReport",
    "IdenticalHit",
    "ImageError",
    "ImageRecord",
    "ImportReport",
    "ImporterInfo",
    "IngestPlan",
    "IngestReport",
    "Kind",
    "LookupResult",
    "MissingBelow",
    "MissingError",
    "NearHit",
    "OptimizeReport",
    "PackedBits",
    "Problem",
    "ReembedReport",
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
    "UnknownImageError",
    "UsageError",
    "__version__",
    "import_encoder",
    "list_encoders",
]

# The modules of names outside errors and records.
_MODULES = {
    "Store": "engine.api",
    "EncoderInfo": "engine.encoders.overview",
    "EncoderList": "engine.encoders.overview",
    "ImporterInfo": "engine.encoders.overview",
    "ImportReport": "engine.encoders.importers.request",
    "import_encoder": "engine.api.import_encoder",
    "list_encoders": "engine.encoders.overview",
    "PackedBits": "engine.images.packed_bits",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Type checkers must not see __getattr__: they would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used (PEP 562).

        ``python -m engine`` imports this package first, and has to handle signals before it loads
        anything that takes time.
        """
        from importlib import import_module

        if name in {"api", "errors", "images", "records"}:
            return import_module(f"engine.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Before importing anything that would end the process without a message.
        import_module("engine.address_space").require()
        home = "engine.errors" if name.endswith("Error") else _MODULES.get(name, "engine.records")
        value = getattr(import_module(home), name)
        # Later uses find it without this function.
        globals()[name] = value
        return value
