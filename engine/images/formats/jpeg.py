"""JPEG: decodes it, and before that counts its scans, and the segments before the first.

A progressive file of a few hundred kilobytes may have thousands of scans, each of which goes over the
whole picture ("end of band" runs of 32,767 blocks take three bytes). libjpeg-turbo leaves a limit to
its callers (``djpeg -maxscans``) and advises some hundred scans. The time depends on blocks × scans, so
that product is limited here: a small picture may have many scans.

libjpeg-turbo decodes to RGB at once through simplejpeg, which takes half the time of Pillow and its
conversion. The pixels are the same. Pillow decodes what simplejpeg does not take, or warns of.

Measured: 26 to 37 ns per block and scan (one core), and 130 bytes of memory for each segment that Pillow
keeps.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ImageFile

from engine.errors import ImageError
from engine.images.formats.cost import HeaderCost
from engine.images.formats.samples import grey_to_rgb, to_rgb

MAX_BLOCK_VISITS = 50_000_000
"""The most blocks that all scans together go over, about two seconds; see ``VISITS_PER_BLOCK``."""
VISITS_PER_BLOCK = 16
"""The visits that any picture may have, however large: real files visit a block 1 to 12 times."""
MAX_SEGMENTS = 20_000
"""The most segments before the pixels: a real file has a few, or hundreds with a large profile."""
MAX_FILL_BYTES = 1 << 16
"""The most fill bytes before a marker, which Pillow reads one by one."""

_SEGMENT_BYTES = 256
# Restart markers have no length and lie between coded data.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOS, _EOI, _DHT, _JPG, _DAC = 0xDA, 0xD9, 0xC4, 0xC8, 0xCC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {_DAC}
# An arithmetic decoder works as long without data as with it; a Huffman decoder skips to the end.
_ARITHMETIC_VISITS = 16


class _Frame:
    """A frame header: the size, and the sampling of each component."""

    def __init__(self, marker: int, data: bytes, at: int) -> None:
        self.progressive = marker in _PROGRESSIVE
        self.weight = _ARITHMETIC_VISITS if marker in _ARITHMETIC else 1
        count = data[at + 5]
        width, height = (int.from_bytes(data[i : i + 2], "big") for i in (at + 3, at + 1))
        self.sampling: dict[int, tuple[int, int]] = {}
        for i in range(count):
            name, factors = data[at + 6 + 3 * i], data[at + 7 + 3 * i]
            self.sampling[name] = (max(factors >> 4, 1), max(factors & 15, 1))
        self._widest = max((h for h, _ in self.sampling.values()), default=1)
        self._tallest = max((v for _, v in self.sampling.values()), default=1)
        self._width, self._height = width, height

    def blocks(self, components: list[int]) -> int:
        """Return the number of 8 × 8 blocks that a scan over these components goes over."""
        width, height = self._width, self._height
        if len(components) == 1:
            h, v = self.sampling.get(components[0], (1, 1))
            columns = -(-width * h // (8 * self._widest))
            return columns * -(-height * v // (8 * self._tallest))
        units = -(-width // (8 * self._widest)) * -(-height // (8 * self._tallest))
        sampling = [self.sampling.get(component, (1, 1)) for component in components]
        return units * sum(h * v for h, v in sampling)

    @property
    def all_blocks(self) -> int:
        """Return the number of blocks of all components."""
        return sum(self.blocks([component]) for component in self.sampling)


def header_cost(data: bytes) -> HeaderCost:
    """Return the cost of decoding a JPEG; ``ImageError`` if it has too many scans or segments."""
    frame: _Frame | None = None
    segments = scans = visits = at = 0
    multiple = False
    while (found := _MARKER.search(data, at)) is not None:
        if not scans and found.start() - at > MAX_FILL_BYTES:
            raise ImageError(f"broken image: more than {MAX_FILL_BYTES:,} fill bytes")
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI and frame is not None:
            break
        if marker in (0x01, 0xD8, _EOI):
            continue
        if at + 2 > len(data):
            break
        length = int.from_bytes(data[at : at + 2], "big")
        body, at = at + 2, at + max(length, 2)
        segments += 1
        if not scans and segments > MAX_SEGMENTS:
            raise ImageError(f"more than {MAX_SEGMENTS:,} segments before the pixels")
        if at > len(data):
            break
        if marker in _FRAMES and frame is None and length >= 8:
            if length < 8 + 3 * data[body + 5]:
                break
            frame = _Frame(marker, data, body)
        elif marker == _SOS and frame is not None:
            count = data[body] if body < len(data) else 0
            names = list(data[body + 1 : body + 1 + 2 * count : 2])
            scans += 1
            if not frame.progressive and len(names) >= len(frame.sampling):
                # The decoder ignores everything that follows.
                break
            multiple = True
            visits += frame.blocks(names) * frame.weight
            if visits > max(MAX_BLOCK_VISITS, VISITS_PER_BLOCK * frame.all_blocks):
                raise ImageError(
                    f"more than {scans - 1} scans over {frame.all_blocks:,} blocks: decoding would take "
                    "far too long; save it again as a baseline JPEG"
                )
    return HeaderCost(parsing=segments * _SEGMENT_BYTES, multiple_scans=multiple)


def read(data: bytes, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    """Return the pixels of an opened JPEG, (H, W, 3) uint8, as Pillow decodes and converts them."""
    layout = {"RGB": "RGB", "L": "GRAY"}.get(image.mode)
    if layout is None:
        return to_rgb(image)
    try:
        # It is strict: a warning of the decoder is an error.
        found = simplejpeg.decode_jpeg(data, layout)
    # Pillow says what is wrong, or takes the file nevertheless.
    except ValueError:
        return to_rgb(image)
    if found.shape[:2] != (image.height, image.width):
        return to_rgb(image)
    return found if layout == "RGB" else grey_to_rgb(found[..., 0])
