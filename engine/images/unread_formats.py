"""Image formats that the engine does not read, by the suffix of a file's name.

A camera raw file is often a TIFF whose first picture is a thumbnail. Reading it as a TIFF would store
that picture instead, so the file's name decides.
"""

from __future__ import annotations

_HEIC = (".heic", ".heif", ".hif")
_RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
_FORMATS = {
    **dict.fromkeys(_HEIC, "HEIC"),
    **dict.fromkeys(_RAW, "camera raw"),
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".psb": "Photoshop",
    ".svg": "SVG",
    ".svgz": "SVG",
}


def unread_format(name: bytes) -> str | None:
    """Return the format that a file's name claims, if the engine does not read it; else None.

    macOS keeps a "._NAME" file next to a file; it has the same suffix but is not an image.
    """
    base = name.rpartition(b"/")[2]
    stem, dot, suffix = base.rpartition(b".")
    if not stem or stem.startswith(b"._"):
        return None
    return _FORMATS.get((dot + suffix.lower()).decode(errors="replace"))
