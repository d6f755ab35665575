"""An embedded, disk-backed index for images: is this very image here, and what looks like it?"""

import os

# ONNX Runtime 1.29 and later would report its use over the network and leave an identifier in the folder
# for temporary files. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # type checkers take it for true; importing typing would take milliseconds

if TYPE_CHECKING:
    from engine.api import Store
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
]

_MODULES = {
    "Store": "engine.api",
    "PackedBits": "engine.images.packed_bits",
}  # of names beside errors and records


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        """Load a public name when it is first asked for (PEP 562).

        ``python -m engine`` imports this package first, and has to handle signals before it loads
        anything that takes time.
        """
        from importlib import import_module

        if name in {"api", "errors", "images", "records"}:
            return import_module(f"engine.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Before anything that would end the process without a word.
        import_module("engine.address_space").require()
        home = "engine.errors" if name.endswith("Error") else _MODULES.get(name, "engine.records")
        value = getattr(import_module(home), name)
        globals()[name] = value  # the next one finds it without this
        return value
