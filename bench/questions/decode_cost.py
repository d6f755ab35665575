"""What does decoding take? Bytes of memory a pixel by format, mode and kind, beside the estimate.

Makes a picture of each kind that Pillow can write, and decodes it in a process of its own. Prints
the peak of anonymous memory a pixel: of decoding alone, and with fingerprint and picture. Beside it
stands the estimate of ``engine.images.formats.cost``. Met if nothing takes more than its estimate.
Linux only.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..harness import memory, script
from ..harness.errors import BenchError
from ..harness.process import run_child
from ..report.tables import align

SIZE = (4000, 3000)
_SMALL = (64, 64)
_TOLERANCE = 1 << 20  # bytes: pages of the process beside the picture
_EXIF_TURNED = Image.Exif()
_EXIF_TURNED[0x0112] = 6


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of file: its name, Pillow's mode and format, and Pillow's options for writing it."""

    name: str
    mode: str
    form: str
    options: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """All kinds of files to measure."""
    for mode in ("1", "L", "P", "P+alpha", "RGB", "RGB+alpha", "two-tone", "LA", "RGBA", "I;16"):
        yield Case("PNG", mode, "PNG", {"compress_level": 1})
    for mode in ("RGB", "RGBA", "I;16"):
        yield Case("PNG turned", mode, "PNG", {"compress_level": 1, "exif": _EXIF_TURNED})
    for mode in ("RGB", "RGBA", "RGB;16", "RGBA;16"):
        yield Case("PNG interlaced", mode, "png")
    for mode in ("L", "RGB", "CMYK"):
        yield Case("JPEG baseline", mode, "JPEG")
        yield Case("JPEG progressive", mode, "JPEG", {"progressive": True, "subsampling": 0})
    yield Case("JPEG turned", "RGB", "JPEG", {"exif": _EXIF_TURNED})
    for mode in ("RGB", "RGBA"):
        yield Case("WebP lossy", mode, "WEBP", {"method": 0})
        yield Case("WebP lossless", mode, "WEBP", {"lossless": True, "method": 0, "quality": 0})
        yield Case("WebP animated", mode, "WEBP", {"method": 0, "save_all": True, "frames": 3})
    for mode in ("1", "L", "P", "RGB"):
        yield Case("GIF", mode, "GIF")
    yield Case("GIF animated", "P", "GIF", {"save_all": True, "frames": 3})
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield Case("BMP", mode, "BMP")
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"):
        yield Case("TIFF strips", mode, "TIFF")
        yield Case("TIFF strips, deflate", mode, "TIFF", {"compression": "tiff_deflate"})
        one = {"compression": "tiff_lzw", "strip_size": 1 << 30}
        yield Case("TIFF one strip, LZW", mode, "TIFF", one)
    yield Case("TIFF, group 4", "1", "TIFF", {"compression": "group4"})
    for compression in ("jpeg", "zstd", "lzma", "packbits"):
        yield Case(f"TIFF strips, {compression}", "RGB", "TIFF", {"compression": compression})
    for mode in ("1", "L", "RGB", "I;16"):
        yield Case("PPM", mode, "PPM")
    for mode in ("L", "RGB", "RGBA"):
        yield Case("AVIF", mode, "AVIF", {"speed": 10})
        yield Case("AVIF 4:4:4", mode, "AVIF", {"speed": 10, "subsampling": "4:4:4"})
    for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        yield Case("JPEG 2000", mode, "JPEG2000")
    yield Case("JPEG 2000, tiles", "RGB", "JPEG2000", {"tile_size": (512, 512)})
    yield Case("JPEG 2000, blocks 4 × 4", "RGB", "JPEG2000", {"codeblock_size": (4, 4)})
    yield Case("JPEG 2000, precincts", "L", "JPEG2000", {"precinct_size": (64, 64)})
    for mode in ("L", "P", "LA", "RGB", "RGBA"):
        yield Case("TGA", mode, "TGA")
        yield Case("TGA, packed", mode, "TGA", {"compression": "tga_rle"})


@dataclass(frozen=True, slots=True)
class Measured:
    """One kind: bytes a pixel of decoding, with all later work, and as estimated."""

    case: Case
    decoded: float
    whole: float
    counted: float
    over: bool  # it takes more than estimated


def measure(case: Case, size: tuple[int, int] = SIZE) -> Measured:
    """Decode a picture of ``case`` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        paths = {}
        for name, side in (("small", _SMALL), ("large", size)):
            path = Path(folder) / name
            path.write_bytes(_file(case, side))
            paths[name] = str(path)
        found = run_child("questions.decode_cost_child", paths).result
    pixels = size[0] * size[1]
    return Measured(
        case,
        found["decoded"] / pixels,
        found["whole"] / pixels,
        found["counted"] / pixels,
        found["whole"] > found["counted"] + _TOLERANCE,
    )


def table(found: list[Measured]) -> str:
    """Bytes a pixel as aligned columns."""
    lines: list[Sequence[str]] = [("file", "mode", "decoded", "and looked at", "counted", "")]
    for one in found:
        figures = [f"{number:.2f}" for number in (one.decoded, one.whole, one.counted)]
        name, mode = one.case.name, one.case.mode
        lines.append((name, mode, *figures, "MORE THAN COUNTED" if one.over else ""))
    return align(lines, left=(0, 1, 5))


def main() -> bool:
    """Measure and print; true if nothing takes more than estimated."""
    parser = script.parser(__doc__)
    parser.add_argument("--only", default="", help="the files whose name begins so")
    only = parser.parse_args().only
    if not memory.anonymous():
        raise BenchError("this needs Linux's /proc")
    found = [measure(case) for case in cases() if case.name.startswith(only)]
    print(table(found))
    return not any(one.over for one in found)


def _file(case: Case, size: tuple[int, int]) -> bytes:
    if case.form == "png":
        return _interlaced(_samples(size, 4 if "A" in case.mode else 3), deep="16" in case.mode)
    output = io.BytesIO()
    options = dict(case.options)
    frames = options.pop("frames", 1)
    image = _picture(case.mode, size)
    if case.mode.endswith("+alpha"):
        options["transparency"] = 3 if image.mode == "P" else (3, 3, 3)
    if frames > 1:
        options["append_images"] = [image.rotate(180) for _ in range(frames - 1)]
    image.save(output, case.form, **options)
    return output.getvalue()


def _samples(size: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    """A pattern (height, width, channels) that compresses and has more than two colours."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    grey = ((x // 8 * 3 + y // 8 * 5) % 251).astype(np.uint8)
    return np.stack([np.roll(grey, 8 * i, 1) for i in range(channels)], axis=-1)


def _picture(mode: str, size: tuple[int, int]) -> Image.Image:
    mode = mode.partition("+")[0]
    if mode in ("1", "two-tone"):
        image = Image.fromarray((_samples(size, 3) > 125).astype(np.uint8)[..., 0] * np.uint8(255))
        return image.convert("1" if mode == "1" else "RGB")
    if mode == "I;16":
        return Image.fromarray(_samples(size, 1)[..., 0].astype(np.uint16) * np.uint16(257))
    bands = [Image.fromarray(band) for band in np.moveaxis(_samples(size, 4), -1, 0)]
    if mode in ("L", "P"):
        return bands[0].convert(mode)
    return Image.merge(mode, bands[: len(mode)])


def _interlaced(samples: npt.NDArray[np.uint8], *, deep: bool) -> bytes:
    """An interlaced PNG, which Pillow does not write."""
    values: npt.NDArray[Any] = samples.astype(">u2") * np.uint16(255) if deep else samples
    if deep:
        values = values.astype(">u2")
    height, width, channels = values.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    packer = zlib.compressobj(1)
    body = b""
    for top, left, down, across in [*passes, (1, 0, 2, 1)]:
        some = np.ascontiguousarray(values[top::down, left::across])
        rows = some.reshape(len(some), -1).view(np.uint8)
        body += packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    body += packer.flush()
    colour = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, colour, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


if __name__ == "__main__":
    script.exit_with(main)
