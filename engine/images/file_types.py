"""Which files claim to be images: by their suffix, or by their first bytes."""

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


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (≥ 16 bytes) is signed as an image of a known format."""
    return (
        head.startswith(
            (
                b"\x89PNG\r\n\x1a\n",
                b"\xff\xd8\xff",
                b"GIF87a",
                b"GIF89a",
                b"II*\x00",
                b"MM\x00*",
                b"II+\x00",  # BigTIFF
                b"MM\x00+",
                b"\x00\x00\x00\x0cjP  \r\n\x87\n",
                b"\xff\x4f\xff\x51",
            )
        )
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (
            head[:1] == b"P" and head[1:2].isdigit() and head[2:3].isspace() and head[3:4].isdigit()
        )
    )
