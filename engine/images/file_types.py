"""Detects image files and their formats, by suffix or by the first bytes."""

from __future__ import annotations

SUFFIXES = frozenset(
    [
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jpf",
        ".tga",
        ".mpo",
    ]
)


# The names are Pillow's. For TIFF, Pillow also accepts four bytes that no standard has.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"MM*\0", "TIFF"),
    (b"II\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)


def format_of(head: bytes) -> str | None:
    """Return Pillow's name of the format of a file that begins with ``head`` (≥ 16 bytes).

    Returns None for a file without the signature of a known image format.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[:1] == b"P" and head[1:2].isdigit() and head[2:3].isspace() and head[3:4].isdigit():
        return "PPM"
    return None


def looks_like_image(head: bytes) -> bool:
    """Return whether ``head`` (≥ 16 bytes) has the signature of a known image format."""
    return format_of(head) is not None
