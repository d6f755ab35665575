"""Every sample of every layout that the formats allow reaches the identity, or the file is refused.

Files are written from known samples. Each sample is then changed in its lowest bit, one after the other:
the pixels must be the true ones each time, so that identity changes with any of them.
"""

import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from layouts import bmp, chunk, packed, png, pnm, tga, tiff

from engine.errors import ImageError
from engine.images import canonical as px
from engine.images.decode import decode
from engine.images.rgb_picture import to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

RNG = np.random.default_rng(20250711)
HEIGHT, WIDTH = 3, 5
Samples = np.ndarray


def shown(array: np.ndarray) -> bytes:
    """The canonical form of a file's pixels, (H, W, 3 or 4) of uint8 or uint16."""
    if array.dtype == np.uint8 and not ((array != 0) & (array != 255)).any():
        array = array.astype(bool)
    return bytes(px.from_array(array).canonical)


def decoded(data: bytes) -> bytes:
    return bytes(decode(data).pixels.canonical)


def full(values: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 1 to 16 bits at 8 or 16, rounded to the nearest."""
    highest, top = (1 << bits) - 1, 255 if bits <= 8 else 65535
    dtype = np.uint8 if bits <= 8 else np.uint16
    return ((values.astype(np.uint64) * 2 * top + highest) // (2 * highest)).astype(dtype)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, 3, axis=-1)


def drawn(channels: int, bits: int) -> np.ndarray:
    return RNG.integers(0, 1 << min(bits, 32), (HEIGHT, WIDTH, channels), np.uint32)


def sweep(
    samples: np.ndarray,
    write: Callable[[np.ndarray], bytes],
    truth: Callable[[np.ndarray], np.ndarray],
) -> None:
    """The pixels of ``samples``, and of each change of one in its lowest bit, are the true ones."""
    first = decoded(write(samples))
    assert first == shown(truth(samples))
    for place in np.ndindex(samples.shape):
        other = samples.copy()
        other[place] ^= 1
        found = decoded(write(other))
        assert found == shown(truth(other)), place
        assert found != first, place


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) == 1


# --- TIFF -----------------------------------------------------------------------------------------

STORED = [
    dict(zip(["order", "compression", "shape"], each, strict=True))
    for each in itertools.product("<>", [1, 8, 32773], [{}, {"rows": 2}, {"tile": 16}])
]
# Of the many ways to store a layout each is taken at least once with each layout's byte order.
SOME = [
    {"order": "<"},
    {"order": ">", "rows": 2},
    {"order": "<", "tile": 16, "compression": 8},
    {"order": ">", "compression": 32773, "rows": 2},
]


def named(cases: list) -> list:
    return [pytest.param(*case, id=" ".join(str(part) for part in case)) for case in cases]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_tiffs_however_they_are_stored(stored, bits):
    options = {"order": stored["order"], "compression": stored["compression"], **stored["shape"]}
    samples = drawn(3, bits)
    data = tiff(samples, bits, photometric=2, **options)
    assert decoded(data) == shown(full(samples, bits))
    samples[2, 4, 1] ^= 1
    assert decoded(tiff(samples, bits, photometric=2, **options)) == shown(full(samples, bits))


@pytest.mark.slow
@pytest.mark.parametrize("stored", SOME, ids=str)
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("planar", [1, 2])
def test_grey_tiffs(bits, photometric, planar, stored):
    samples = drawn(1, bits)

    def write(values: np.ndarray) -> bytes:
        return tiff(values, bits, photometric=photometric, planar=planar, **stored)

    unread = bits == 12 and (photometric == 0 or stored["order"] == ">")
    if unread or (bits == 16 and photometric == 0 and stored["order"] == ">"):
        refused(write(samples), f"{bits} bits", "convert it to PNG")
        return
    top = 255 if bits <= 8 else 65535
    sweep(
        samples,
        write,
        lambda values: grey(full(values, bits) if photometric else top - full(values, bits)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stored", SOME, ids=str)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_tiffs_with_separate_planes(channels, bits, stored):
    samples, extra = drawn(channels, bits), (2,) if channels == 4 else ()

    def write(values: np.ndarray) -> bytes:
        return tiff(values, bits, photometric=2, planar=2, extra=extra, **stored)

    if bits == 16 and stored.get("compression", 1) != 1:
        refused(write(samples), "separate planes", "convert it to PNG")
    else:
        sweep(samples, write, lambda values: full(values, bits))


@pytest.mark.slow
@pytest.mark.parametrize("stored", SOME, ids=str)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [(), (1,), (2,), (999,)])
def test_rgba_tiffs(alpha, bits, stored):
    top = (1 << bits) - 1
    samples = drawn(4, bits)
    if alpha == (1,):
        samples[..., 3:] |= top >> 1  # so that there is room for colours below it
        samples[..., :3] = samples[..., :3] // 4 + 1

    def write(values: np.ndarray) -> bytes:
        return tiff(values, bits, photometric=2, extra=alpha, **stored)

    def truth(values: np.ndarray) -> np.ndarray:
        straight = values.astype(np.uint64)
        if alpha == (1,):
            straight[..., :3] = straight[..., :3] * top // straight[..., 3:]
        return straight.astype(np.uint8 if bits == 8 else np.uint16)

    if bits == 16 and alpha == (999,):
        refused(write(samples), "convert it to PNG")
    else:
        sweep(samples, write, truth)


@pytest.mark.parametrize("photometric", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_colour_above_its_associated_alpha_is_refused(photometric, bits):
    samples = np.full((HEIGHT, WIDTH, 2 if photometric == 1 else 4), 9, np.uint32)
    samples[1, 1, 0] = 10
    data = tiff(samples, bits, photometric=photometric, extra=(1,))
    refused(data, "convert it" if (photometric, bits) == (1, 16) else "above their alpha")


@pytest.mark.parametrize("stored", SOME, ids=str)
@pytest.mark.parametrize("alpha", [1, 2])
def test_grey_tiffs_with_alpha(alpha, stored):
    samples = drawn(2, 8)
    if alpha == 1:
        samples = samples // [4, 1] + [1, 0] | np.uint32([0, 127])
        samples = samples.astype(np.uint32)

    def truth(values: np.ndarray) -> np.ndarray:
        value = values[..., :1] * 255 // values[..., 1:] if alpha == 1 else values[..., :1]
        return np.concatenate([grey(value), values[..., 1:]], axis=-1).astype(np.uint8)

    sweep(samples, lambda values: tiff(values, 8, photometric=1, extra=(alpha,), **stored), truth)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("stored", SOME, ids=str)
@pytest.mark.parametrize("depth", ["times 257", "times 256", "16 bits"])
def test_tiffs_with_a_palette(bits, stored, depth):
    colours = RNG.permuted(np.arange(1, 256, dtype=np.uint32))[: 3 << bits] if bits < 6 else None
    colours = colours if colours is not None else RNG.integers(0, 256, 768, np.uint32)
    colours = colours.reshape(-1, 3)
    colours[:, 0] = np.arange(len(colours))  # no two are equal
    table = colours * {"times 257": 257, "times 256": 256, "16 bits": 255}[depth]
    true = table.astype(np.uint16) if depth == "16 bits" else colours.astype(np.uint8)
    samples = drawn(1, bits)
    samples[0, 0], samples[2, 4] = 1, 0  # 0 and 255 times 255 is no 16-bit number
    sweep(
        samples,
        lambda values: tiff(values, bits, photometric=3, colormap=table, **stored),
        lambda values: true[values[..., 0]],
    )


def test_the_low_byte_of_a_tiff_palette_is_seen():
    table = np.arange(48, dtype=np.uint32).reshape(16, 3) * 257
    samples = drawn(1, 4)
    samples[0, 0] = 3
    first = tiff(samples, 4, photometric=3, colormap=table)
    table[3, 1] += 1
    other = tiff(samples, 4, photometric=3, colormap=table)
    assert decoded(other) == shown(table.astype(np.uint16)[samples[..., 0]]) != decoded(first)


def test_a_tiff_palette_with_alpha():
    table = RNG.integers(0, 256, (256, 3), np.uint32)
    table[:, 0] = np.arange(256)

    def truth(values: np.ndarray) -> np.ndarray:
        return np.concatenate([table[values[..., 0]], values[..., 1:]], -1).astype(np.uint8)

    def write(values: np.ndarray) -> bytes:
        return tiff(values, 8, photometric=3, extra=(2,), colormap=table * 257)

    sweep(drawn(2, 8), write, truth)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [{}, {"rows": 2}, {"tile": 16}], ids=str)
@pytest.mark.parametrize(("bits", "photometric"), [(1, 0), (1, 1), (2, 1), (4, 0), (8, 1), (8, 2)])
def test_tiffs_with_the_bits_of_each_byte_turned_round(bits, photometric, stored):
    samples = drawn(3 if photometric == 2 else 1, bits)

    def truth(values: np.ndarray) -> np.ndarray:
        array = full(values, bits) if photometric else 255 - full(values, bits)
        return array if photometric == 2 else grey(array)

    sweep(
        samples,
        lambda values: tiff(values, bits, photometric=photometric, fill=2, **stored),
        truth,
    )
    if photometric == 2:
        refused(tiff(samples, bits, photometric=2, fill=2, planar=2), "separate planes")


FORMS = [
    (bits, form, photometric)
    for bits, form in [
        (8, 2),
        (16, 2),
        (32, 1),
        (32, 2),
        (32, 3),
        (64, 3),
        (16, 3),
        (8, 4),
        (64, 1),
    ]
    for photometric in (1, 2)
]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "form", "photometric"), FORMS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [1, 2])
def test_tiffs_with_other_samples_are_refused(bits, form, photometric, order, planar):
    samples = drawn(3 if photometric == 2 else 1, 8)
    data = tiff(samples, bits, photometric=photometric, form=form, order=order, planar=planar)
    refused(data, "TIFF", f"{bits} bits", "not supported: convert it to PNG")


@pytest.mark.parametrize(
    ("photometric", "extra", "bits", "planar"),
    [
        (photometric, extra, bits, planar)
        for photometric, extras in [
            (1, [(0,)]),
            (2, [(0,), (0, 0), (2, 0), (1, 0), (0, 0, 0)]),
            (3, [(0,)]),
            (5, [(0,), (0, 0)]),
        ]
        for extra in extras
        for bits in (8, 16)
        for planar in (1, 2)
    ],
)
def test_tiffs_with_extra_samples_are_refused(photometric, extra, bits, planar):
    channels = {1: 1, 2: 3, 3: 1, 5: 4}[photometric] + len(extra)
    table = np.zeros((256, 3), np.uint32)
    data = tiff(
        drawn(channels, bits),
        bits,
        photometric=photometric,
        extra=extra,
        planar=planar,
        colormap=table if photometric == 3 else None,
    )
    refused(data, "TIFF", "not supported: convert it to PNG")


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("photometric", [6, 8])
def test_tiffs_of_colours_that_rgb_does_not_hold_are_refused(photometric, compression):
    refused(tiff(drawn(3, 8), 8, photometric=photometric, compression=compression), "convert it")


def test_cmyk_tiffs_are_compared_as_rgb():
    samples = drawn(4, 8)
    plain = tiff(samples, 8, photometric=5)
    assert decoded(plain) == decoded(tiff(samples, 8, photometric=5, planar=2, rows=2))
    rgb = to_rgb8(decode(plain).pixels).astype(int)
    want = (255 - samples[..., :3].astype(int)) * (255 - samples[..., 3:].astype(int)) / 255
    assert np.abs(rgb - want).max() <= 1
    refused(tiff(drawn(4, 16), 16, photometric=5), "convert it")


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_tiff_without_its_last_strip_is_refused(rows, planar):
    data = bytearray(tiff(drawn(3, 8), 8, photometric=2, rows=rows, planar=planar))
    at = data.index(bytes([273 & 255, 273 >> 8, 4, 0]))
    count = int.from_bytes(data[at + 4 : at + 8], "little")
    data[at + 4 : at + 8] = (count - 1).to_bytes(4, "little")
    refused(bytes(data), "missing")


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(
    ("bits", "channels"), [(b, 1) for b in (1, 2, 4, 8, 12, 16)] + [(8, 3), (16, 3)]
)
def test_tiffs_of_many_tiles(bits, channels, planar, compression):
    samples = RNG.integers(0, 1 << bits, (20, 37, channels), np.uint32)
    data = tiff(
        samples,
        bits,
        photometric=1 if channels == 1 else 2,
        tile=16,
        planar=planar,
        compression=compression,
    )
    if (bits, planar, compression, channels) == (16, 2, 8, 3):
        refused(data, "separate planes")
    else:
        assert decoded(data) == shown(
            full(samples, bits) if channels == 3 else grey(full(samples, bits))
        )


# --- PNG ------------------------------------------------------------------------------------------

PNG_LAYOUTS = [(depth, 0, key) for depth in (1, 2, 4, 8, 16) for key in (False, True)] + [
    (depth, colour, key)
    for colour, keys in [(2, (False, True)), (4, (False,)), (6, (False,))]
    for key in keys
    for depth in (8, 16)
]


@pytest.mark.slow
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour", "transparent"), PNG_LAYOUTS)
def test_pngs(depth, colour, transparent, interlaced):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    samples = drawn(channels, depth)
    key = samples[1, 2].copy()
    # Only the bits of the depth count; the others should be 0 and may not be.
    high = 0 if depth == 16 else 1 << 15
    more = [chunk(b"tRNS", (key | high).astype(">u2").tobytes())] if transparent else []

    def truth(values: np.ndarray) -> np.ndarray:
        array = full(values, depth)
        if transparent:
            opaque = (values != key).any(axis=-1, keepdims=True)
            array = grey(array) if colour == 0 else array
            top = np.iinfo(array.dtype).max
            return np.concatenate([array, (opaque * top).astype(array.dtype)], axis=-1)
        if channels <= 2:
            return np.concatenate([grey(array[..., :1]), array[..., 1:]], axis=-1)
        return array

    sweep(samples, lambda values: png(values, depth, colour, *more, interlaced=interlaced), truth)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("alpha", [b"", b"\xff\0", b"\1\2"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_pngs_with_a_palette(depth, alpha, interlaced):
    table = RNG.integers(1, 255, (1 << depth, 4), np.uint8)
    table[:, 0], table[:, 3] = np.arange(len(table)), 255
    table[: len(alpha), 3] = list(alpha)
    more = [chunk(b"PLTE", table[:, :3].tobytes()), *([chunk(b"tRNS", alpha)] if alpha else [])]
    sweep(
        drawn(1, depth),
        lambda values: png(values, depth, 3, *more, interlaced=interlaced),
        lambda values: table[values[..., 0]],
    )


def test_a_colour_that_a_palette_lacks_is_refused():
    samples = drawn(1, 8) & 3
    palette = chunk(b"PLTE", bytes(range(12)))
    decoded(png(samples, 8, 3, palette))
    samples[1, 1] = 4
    refused(png(samples, 8, 3, palette), "palette")
    refused(png(samples, 8, 3), "palette")


# --- PNM ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("highest", [1, 2, 7, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_pnms(kind, highest):
    shape = (HEIGHT, WIDTH, 3 if kind in (3, 6) else 1)
    samples = RNG.integers(0, highest, shape, np.uint32) & ~np.uint32(
        1
    )  # and one more is right too

    def truth(values: np.ndarray) -> np.ndarray:
        top, dtype = (65535, np.uint16) if highest > 255 else (255, np.uint8)
        array = np.rint(values / highest * top).astype(dtype)
        return array if shape[2] == 3 else grey(array)

    sweep(samples, lambda values: pnm(values, kind, highest), truth)
    samples[1, 1] = highest + 1
    if highest not in (255, 65535) or kind < 4:
        refused(pnm(samples, kind, highest), "above the highest value")


@pytest.mark.parametrize("kind", [1, 4])
def test_bitmaps(kind):
    sweep(
        drawn(1, 1), lambda values: pnm(values, kind, 1), lambda values: grey(full(1 - values, 1))
    )


def test_comments_between_the_digits_of_a_pnm():
    data = b"P3\n# one\n2 1 # two\n300\n1 2 #three\n3\n#\n4 5 300\n#"
    want = np.round(np.array([[[1, 2, 3], [4, 5, 300]]]) * 65535 / 300).astype(np.uint16)
    assert decoded(data) == shown(want)
    for broken in (
        b"P2 2 1 300 1",
        b"P2 1 1 300 -1",
        b"P2 1 1 300 x",
        b"P5 2 2 300\n123",
        b"P2 1 1 300",
    ):
        refused(broken)


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("length", [1, 70_000])
def test_long_and_many_comments_of_a_pnm(length, end):
    values = drawn(1, 16)
    comment = b"#" + b" 7 #" * (length // 4) + end
    digits = [b"%d" % value for value in values.ravel()]
    head = b"P2 %d %d 65535\n" % (WIDTH, HEIGHT)
    for between in (comment, b" " + comment, comment * 2 + b"\n", b" " + comment * 9 + b"\t"):
        assert decoded(head + between.join(digits) + comment[:-1]) == shown(
            grey(values.astype(np.uint16))
        )


@pytest.mark.parametrize("magic", [b"PyP", b"PyRGBA", b"P0CMYK", b"Pf"])
def test_other_pnms_are_refused(magic):
    refused(magic + b" 2 2 255\n" + bytes(16), "not supported")


# --- GIF ------------------------------------------------------------------------------------------


def gif(
    indices: np.ndarray, bits: int, table: np.ndarray, *, transparent: int | None, local: bool
) -> bytes:
    """A GIF without compression: the dictionary is cleared before each pixel."""
    height, width = indices.shape
    least = max(bits, 2)
    codes = [code for value in indices.reshape(-1) for code in (1 << least, int(value))] + [
        (1 << least) + 1
    ]
    stream = np.array([code >> i & 1 for code in codes for i in range(least + 1)], np.uint8)
    body = np.packbits(stream, bitorder="little").tobytes()
    blocks = b"".join(
        bytes([len(body[i : i + 255])]) + body[i : i + 255] for i in range(0, len(body), 255)
    )
    flags = 0x80 | bits - 1
    colours = table.astype(np.uint8).tobytes()
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0 if local else flags, 0, 0)
    control = b"" if transparent is None else bytes([0x21, 0xF9, 4, 1, 0, 0, transparent, 0])
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, flags if local else 0)
    first, second = (b"", colours) if local else (colours, b"")
    return head + first + control + frame + second + bytes([least]) + blocks + b"\0;"


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("transparent", [None, 1])
@pytest.mark.parametrize("colours", ["odd", "ramp"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gifs(bits, colours, transparent, local):
    table = np.repeat(np.arange(1 << bits)[:, None], 3, axis=1)
    table = (table * [1, 3, 7] + 5) % 256 if colours == "odd" else np.minimum(table * 2, 255)
    table[-1] = 251
    alpha = np.full(len(table), 255)
    alpha[transparent if transparent is not None else []] = 0
    true = np.concatenate([table, alpha[:, None]], axis=1).astype(np.uint8)
    samples = drawn(1, bits)[..., 0] // 2 if bits == 8 else drawn(1, bits)[..., 0]
    sweep(
        samples,
        lambda values: gif(values, bits, table, transparent=transparent, local=local),
        lambda values: true[values],
    )


# --- BMP and TGA ----------------------------------------------------------------------------------


# An array of 0 and 1 is a bit image, and the two dark greys of a ramp of 1 bit are none. A header of 12
# bytes cannot say how many colours there are.
PALETTES = [
    (bits, header, colours)
    for bits in (1, 4, 8)
    for header in (12, 40, 108, 124)
    for colours in ("odd", "ramp", "black and white")
    if (bits, colours) != (1, "ramp") and (header > 12 or bits == 1 or colours != "black and white")
]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "header", "colours"), PALETTES)
def test_bmps_with_a_palette(bits, header, colours):
    count = 1 << bits
    table = np.repeat(np.arange(count)[:, None], 3, axis=1)
    if colours == "odd":
        table = (table * [1, 3, 7] + 5) % 256
    elif colours == "black and white":
        table = np.array([[0] * 3, [255] * 3])
    samples = RNG.integers(0, len(table), (HEIGHT, WIDTH), np.uint32)
    used = 0 if len(table) == count else len(table)

    sweep(
        samples,
        lambda values: bmp(values, bits, palette=table, header=header, used=used),
        lambda values: table.astype(np.uint8)[values],
    )


WORDS = {
    "24": (24, (), [(16, 8), (8, 8), (0, 8)]),
    "32": (32, (), [(16, 8), (8, 8), (0, 8)]),
    "5-5-5": (16, (), [(10, 5), (5, 5), (0, 5)]),
    "5-5-5 masks": (16, (0x7C00, 0x3E0, 0x1F), [(10, 5), (5, 5), (0, 5)]),
    "5-6-5": (16, (0xF800, 0x7E0, 0x1F), [(11, 5), (5, 6), (0, 5)]),
    "32 masks": (32, (0xFF0000, 0xFF00, 0xFF), [(16, 8), (8, 8), (0, 8)]),
    "alpha": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), [(16, 8), (8, 8), (0, 8), (24, 8)]),
    "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), [(0, 8), (8, 8), (16, 8), (24, 8)]),
}


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("name", WORDS)
def test_bmps_of_words(name, top_down):
    bits, masks, fields = WORDS[name]
    channels = np.stack([drawn(1, width)[..., 0] for _, width in fields], axis=-1)

    def write(values: np.ndarray) -> bytes:
        words = sum(values[..., i] << at for i, (at, _) in enumerate(fields))
        header = 124 if len(masks) == 4 else 40
        return bmp(words, bits, masks=masks, top_down=top_down, header=header)

    def truth(values: np.ndarray) -> np.ndarray:
        parts = [values[..., i] * 255 // ((1 << width) - 1) for i, (_, width) in enumerate(fields)]
        return np.stack(parts, axis=-1).astype(np.uint8)

    sweep(channels, write, truth)


def test_other_masks_of_a_bmp_are_refused():
    words = drawn(1, 32)[..., 0]
    for bits, masks in [(16, (0xF00, 0xF0, 0xF)), (32, (0x3FF00000, 0xFFC00, 0x3FF))]:
        refused(bmp(words, bits, masks=masks), "bitfields")


@pytest.mark.parametrize("used", [0, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_run_length_bmps(bits, used):
    table = np.array([[0] * 3, [255] * 3] if used else [[i, 9, 8] for i in range(1 << bits)])
    samples = RNG.integers(0, len(table), (HEIGHT, WIDTH), np.uint32)

    def write(values: np.ndarray) -> bytes:
        runs = [bytes([1, v << 4 if bits == 4 else v]) for line in values[::-1] for v in line]
        lines = [b"".join(runs[i : i + WIDTH]) + b"\0\0" for i in range(0, len(runs), WIDTH)]
        return bmp(
            values, bits, palette=table, used=used, compression=1 if bits == 8 else 2,
            raw=b"".join(lines) + b"\0\1",
        )  # fmt: skip

    sweep(samples, write, lambda values: table.astype(np.uint8)[values])


@pytest.mark.slow
@pytest.mark.parametrize("packing", [0, 8])
@pytest.mark.parametrize("flags", [0x00, 0x10, 0x20, 0x30])
@pytest.mark.parametrize("depth", [8, 16, 24, 32])
def test_tgas(depth, flags, packing):
    kind = (3 if depth <= 16 else 2) | packing
    samples = RNG.integers(1, 255, (HEIGHT, WIDTH, depth // 8), np.uint8)
    order = {8: [0, 0, 0], 16: [0, 0, 0, 1], 24: [2, 1, 0], 32: [2, 1, 0, 3]}[depth]
    sweep(samples, lambda v: tga(v, kind, depth, flags=flags), lambda v: v[..., order])


@pytest.mark.parametrize("packing", [0, 8])
def test_tgas_of_5_bits_a_channel(packing):
    samples = RNG.integers(0, 1 << 16, (HEIGHT, WIDTH, 1), np.uint16)

    def truth(values: np.ndarray) -> np.ndarray:
        parts = [(values >> at & 31).astype(int) * 255 // 31 for at in (10, 5, 0)]
        return np.concatenate([*parts, np.where(values >> 15, 0, 255)], axis=-1).astype(np.uint8)

    sweep(
        samples, lambda v: tga(v.view(np.uint8).reshape(HEIGHT, WIDTH, 2), 2 | packing, 16), truth
    )


@pytest.mark.parametrize("map_depth", [24, 32])
@pytest.mark.parametrize("start", [0, 3])
def test_tgas_with_a_palette(map_depth, start):
    table = RNG.integers(1, 255, (20, map_depth // 8), np.uint8)
    table[:, 0] = np.arange(20)
    samples = RNG.integers(start, start + 20, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    samples[samples == start] += 2
    samples = np.minimum(samples, start + 17)

    def write(values: np.ndarray) -> bytes:
        return tga(values, 1, 8, palette=table.tobytes(), map_depth=map_depth, map_start=start)

    order = [2, 1, 0] if map_depth == 24 else [2, 1, 0, 3]
    sweep(samples, write, lambda values: table[values[..., 0].astype(int) - start][..., order])
    samples[0, 0] = 200
    refused(write(samples), "palette")


@pytest.mark.parametrize(("kind", "depth"), [(2, 8), (3, 24), (3, 32), (1, 16), (2, 1)])
def test_tgas_of_other_depths_are_refused(kind, depth):
    refused(tga(drawn(1, 8).astype(np.uint8), kind, depth))


def test_rows_are_padded_as_each_format_pads_them():
    assert packed(np.array([[1, 0, 1]]), 1) == b"\xa0"
