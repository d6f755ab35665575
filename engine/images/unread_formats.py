"""Formats of pictures that the engine does not read, by the suffix of a file's name.

A camera raw file is often a TIFF whose first picture is a thumbnail. Read as a TIFF it would be taken
for another picture, so its name decides.
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
    """The format that a file's name claims, if it is one that is not read yet.

    What macOS keeps beside a file as "._NAME" has its name, and is none.
    """
    base = name.rpartition(b"/")[2]
    stem, dot, suffix = base.rpartition(b".")
    if not stem or stem.startswith(b"._"):
        return None
    return _FORMATS.get((dot + suffix.lower()).decode(errors="replace"))
