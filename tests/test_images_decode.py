"""What is refused: broken files, bombs by their headers, and work out of all proportion."""

import struct
import zlib

import numpy as np
import pytest
from helpers import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import chunk
from picture_files import LOSSLESS, PICTURE, SMOOTH, canonical, png16, png_header, reason, tiff
from PIL import Image, ImageFile

from engine.errors import ImageError
from engine.images.decode import decode, memory_to_decode, reason_of, size_of
from engine.images.formats.cost import FIXED_BYTES
from engine.images.orientation import orientation_of

# Pillow warns of oddities in the broken files made here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

RNG = np.random.default_rng(20240611)

LOSSY = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "webp-lossy": ("WEBP", {}),
    "gif": ("GIF", {}),
    "avif": ("AVIF", {}),
    "codestream": ("JPEG2000", {"no_jp2": True}),
}


SAMPLES = RNG.integers(0, 65536, (5, 4, 4), np.uint16)


# --- what is refused ------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "text": b"not an image at all, but some words\n" * 20,
    "truncated-jpeg": encoded(PICTURE, "JPEG")[:-200],
    "truncated-png": encoded(PICTURE, "PNG")[:-200],
    "png-signature": b"\x89PNG\r\n\x1a\n",
    "png-header": png_header(30, 30),
    "png-without-pixels": png_header(30, 30) + chunk(b"IEND", b""),
    "png-no-width": png_header(0, 30) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    "png-bomb": png_header(50_000, 50_000) + chunk(b"IDAT", zlib.compress(bytes(1000))),
    "jpeg-signature": b"\xff\xd8\xff",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>',
    "pdf": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_a_reason(name):
    reason(BROKEN[name])


def test_the_limit_of_pixels_is_inclusive():
    data = encoded(PICTURE, "PNG")
    assert decode(data, max_pixels=37 * 41).pixels.height == 37
    assert "41 × 37" in reason(data, max_pixels=37 * 41 - 1)


def test_a_bomb_is_refused_by_its_header():
    assert "too many pixels" in reason(BROKEN["png-bomb"])


@pytest.mark.parametrize("name", LOSSLESS | LOSSY)
def test_a_file_that_was_cut_is_refused_or_complete(name):
    form, options = (LOSSLESS | LOSSY)[name]
    data = encoded(SMOOTH[:37, :41], form, **options)
    whole = canonical(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            found = canonical(data[:length])
        except ImageError:
            continue
        assert found == whole, length
    reason(data[: len(data) // 2])


def test_a_jpeg2000_without_its_last_tiles_is_refused():
    data = encoded(PICTURE, "JPEG2000", no_jp2=True)
    start = data.index(b"\xff\x93")  # start of data
    reason(data[:start])


SIGNATURES = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBP",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"P6\n",
    b"P1\n",
    b"\0\0\0\x20ftypavif",
    b"\xff\x4f\xff\x51",
    b"\0\0\x01\0\x01\0",
    b"",
]


def reads_or_refuses(data: bytes) -> None:
    try:
        decode(data, max_pixels=1 << 20)
    except ImageError as error:
        assert str(error).strip()
        assert len(str(error).splitlines()) == 1


@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
@settings(max_examples=200)
def test_arbitrary_bytes_never_raise_anything_but_an_image_error(signature, data):
    reads_or_refuses(signature + data)


VALID = [
    encoded(SMOOTH[:16, :16], form)
    for form in sorted({form for form, _ in (LOSSLESS | LOSSY).values()})
] + [png16(SAMPLES), tiff(SAMPLES)]


@pytest.mark.slow
@given(st.sampled_from(VALID), st.data())
@settings(max_examples=200)
def test_damaged_images_never_raise_anything_but_an_image_error(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    reads_or_refuses(bytes(damaged[: draw.draw(st.integers(1, len(data)))]))


def test_what_decoding_takes_is_told_by_the_header():
    data = encoded(PICTURE, "JPEG")[:-200]
    each = (memory_to_decode(data) - FIXED_BYTES - len(data)) / (41 * 37)
    assert 14 <= each < 16
    head = png_header(9_000, 8_000) + chunk(b"IDAT", b"")
    assert memory_to_decode(head) >= 14 * 9_000 * 8_000
    assert memory_to_decode(b"not an image") == 0


def test_an_image_that_takes_more_memory_than_there_is_is_refused():
    data = encoded(PICTURE, "JPEG")
    takes = memory_to_decode(data)
    assert decode(data, max_bytes=takes).pixels.width == 41
    assert "raise memory=" in reason(data, max_bytes=takes - 1)


class Scarce(bytes):
    """The bytes of a file in a process whose memory is used up."""

    def startswith(self, *_: object) -> bool:
        raise MemoryError


def test_where_memory_is_used_up_nothing_is_said_of_a_file():
    class Unreadable(Image.Image):
        def getexif(self) -> Image.Exif:
            raise MemoryError

    with pytest.raises(MemoryError):
        orientation_of(Unreadable())
    scarce = Scarce(encoded(PICTURE, "JPEG"))
    for asked in (memory_to_decode, size_of):
        with pytest.raises(MemoryError):
            asked(scarce)
    with pytest.raises(ImageError, match="not enough memory") as caught:
        decode(scarce)
    assert caught.value.retryable


def test_pillow_must_not_fill_up_truncated_images(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in reason(encoded(PICTURE, "JPEG"))


# --- work out of all proportion -------------------------------------------------------------------


def progressive(width: int, height: int, scans: int, *, sof: int = 0xC2) -> bytes:
    """A grey progressive JPEG that claims a size, and has its last scan again and again."""
    data = bytearray(encoded(PICTURE[..., 0], "JPEG", progressive=True))
    frame = data.index(b"\xff\xc2")
    data[frame + 1] = sof
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last] + data[last:-2] * scans + b"\xff\xd9")


def tiff_of_pages(count: int, *, loop: bool = False) -> bytes:
    """A grey TIFF of 1 × 1 whose last page may lead to the first again."""
    tags = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size = 2 + len(entries) + 4
    after = [8 + size * page for page in range(1, count)] + [8 if loop else 0]
    pages = (struct.pack("<H", len(tags)) + entries + struct.pack("<I", at) for at in after)
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages)


def j2k(**siz: int) -> bytes:
    """A grey JPEG 2000 of 64 × 64, with other numbers in its header."""
    data = bytearray(encoded(SMOOTH[:64, :64, 0], "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51") + 2
    for place, name in enumerate(("width", "height", "x", "y", "tile_width", "tile_height")):
        if name in siz:
            struct.pack_into(">I", data, at + 4 + 4 * place, siz[name])
    style = data.index(b"\xff\x52") + 2
    if "layers" in siz:
        struct.pack_into(">H", data, style + 4, siz["layers"])
    if "block" in siz:
        data[style + 8] = data[style + 9] = siz["block"] - 2
    return bytes(data)


HEAVY = {
    "jpeg-scans": (progressive(8000, 8000, 2000), "scans"),
    "jpeg-scans-arithmetic": (progressive(8000, 8000, 200, sof=0xCA), "scans"),
    "jpeg-segments": (
        b"\xff\xd8" + b"\xff\xfe\0\2" * 30_000 + encoded(PICTURE, "JPEG")[2:],
        "segments",
    ),
    "jpeg-fill": (b"\xff\xd8" + b"\xff" * 100_000 + encoded(PICTURE, "JPEG")[2:], "fill bytes"),
    "tiff-pages": (tiff_of_pages(10_001), "10,000 pages"),
    "gif-extensions": (
        encoded(PICTURE, "GIF")[:-1] + b"\x21\xfe\1a\0" * 250_001 + b";",
        "250,000 extensions",
    ),
    "gif-frames": (
        encoded(PICTURE[:1, :1], "GIF")[:-1] + (b"\x2c" + bytes(11)) * 250_000 + b";",
        "250,000 extensions and frames",
    ),
    "png-chunks": (
        png_header(30, 30) + chunk(b"prIv", b"") * 300_000,
        "300,000 chunks",
    ),
    "jpeg2000-packets": (
        j2k(width=64_000, height=64_000, tile_width=8, tile_height=8, layers=65_535),
        "packets",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_a_file_that_would_take_out_of_all_proportion_long_is_refused_by_its_header(name):
    data, words = HEAVY[name]
    assert words in reason(data)
    assert memory_to_decode(data) == 0


def test_a_small_picture_may_have_many_scans():
    assert decode(progressive(41, 37, 500)).pixels.height == 37


def test_pages_that_go_round_in_a_circle_are_counted_once():
    assert decode(tiff_of_pages(3, loop=True)).pixels.frames == 3


@pytest.mark.parametrize(
    ("changed", "least"),
    [
        (j2k(width=2000, height=2000, tile_width=9, tile_height=9), 49_000 * 8_000),
        (
            j2k(width=2000, height=2000, tile_width=2000, tile_height=2000, block=2),
            30 * 2000 * 2000,
        ),
    ],
    ids=["tiles", "code-blocks"],
)
def test_what_a_header_asks_for_counts(changed, least):
    assert memory_to_decode(changed) >= least
    assert "raise memory=" in reason(changed, max_bytes=100 << 20)


def test_an_avif_that_holds_a_larger_picture_than_it_says_counts_as_that():
    data = encoded(np.zeros((600, 800, 3), np.uint8), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    small = data[:at] + struct.pack(">II", 4, 4) + data[at + 8 :]
    counted = memory_to_decode(small)
    assert counted - memory_to_decode(encoded(PICTURE[:4, :4], "AVIF")) > 600 * 800
    # The decoder would scale it.
    assert "says 4 × 4 pixels, and holds 800 × 600" in reason(small)
    # A decoder passes over units that it does not know, which may lie before the sequence header.
    start = small.index(b"mdat") + 4
    for unit in (b"\x7a\0", b"\x12\0"):
        assert memory_to_decode(small[:start] + unit + small[start + 2 :]) == counted
    # What looks like sequence headers elsewhere is none, and hides none.
    looks = (b"\x12\0\x0a\x0a" + bytes(20)) * 5000
    assert memory_to_decode(small + looks) == counted + len(looks)


def test_strips_and_tiles_count():
    strips = encoded(PICTURE, "TIFF", compression="tiff_lzw")
    at = strips.index(struct.pack("<HH", 278, 3))  # rows of a strip
    tile = struct.pack("<HHII", 322, 4, 1, 30_000) + struct.pack("<HHII", 323, 4, 1, 30_000)
    tiled = strips[:at] + tile + strips[at + 24 :]
    assert memory_to_decode(tiled) >= 3 * 30_000**2
    assert memory_to_decode(strips) < 1 << 20


def test_the_limit_of_pixels_follows_the_memory():
    head = png_header(20_000, 7_000) + chunk(b"IDAT", b"")
    assert "raise memory=" in reason(head, max_bytes=1 << 30)
    assert "limit" not in reason(head, max_bytes=8 << 30)
    assert "over the limit of 128,000,000" in reason(head)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "BMP"])
@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_that_pillow_has_for_a_process_is_left_alone(form, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(PICTURE, form)).pixels.height == 37
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    "error", [AssertionError(), EOFError(), KeyError("a"), ValueError(), KeyError()]
)
def test_a_reason_is_never_the_name_of_a_class(error):
    words = reason_of(error)
    assert words
    assert "Error" not in words


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_that_ends_too_early_is_cut_short_in_plain_words(form):
    data = encoded(PICTURE, form)
    for size in (2, 30, len(data) // 2):
        with pytest.raises(ImageError) as caught:
            decode(data[:size])
        for word in ("unpack", "decoder object", "Expected", "EOF", "File Read"):
            assert word not in str(caught.value)
    with pytest.raises(ImageError, match="broken image: its data is damaged, or cut short"):
        decode(data[:2])
