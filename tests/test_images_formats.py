"""What a file says besides its samples: chunks, boxes, forged depths, and PIL images of opened files."""

import base64
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from layouts import avif_of, box, chunk, packed, png, tiff
from PIL import Image, PngImagePlugin

from engine.errors import ImageError
from engine.images import canonical as px
from engine.images.decode import decode, memory_to_decode
from engine.images.formats import avif, jpeg2000
from engine.images.formats.avif_items import AvifItem, AvifItems
from engine.images.formats.png import pixels_only

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

RNG = np.random.default_rng(20250712)
PICTURE = RNG.integers(0, 256, (6, 7, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 7, 3), np.uint16)


def save(picture: np.ndarray | Image.Image, form: str, **options) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes) -> bytes:
    return bytes(decode(data).pixels.canonical)


def of_array(array: np.ndarray) -> bytes:
    return bytes(px.from_array(array).canonical)


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) == 1


# --- chunks of a PNG ------------------------------------------------------------------------------

LONG = zlib.compress(bytes(2_000_000))
TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "exif in text": chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"sRGB\0\0" + LONG),
    "eXIf": chunk(b"eXIf", b"MM\0*" + bytes(2_000_000)),
    "tEXt": chunk(b"tEXt", b"workflow\0" + bytes(100_000)) * 3,
    "unknown method": chunk(b"iCCP", b"sRGB\0\7") + chunk(b"zTXt", b"a\0\7"),
    "too short": b"".join(
        chunk(name, b"") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"eXIf")
    ),
    "many": chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(900_000))) * 80,
    "private": chunk(b"vpAg", bytes(9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_and_profiles_of_a_png_say_nothing_of_its_pixels(name, where):
    text = TEXTS[name]
    data = png(PICTURE, 8, 2, text) if where == "before" else png(PICTURE, 8, 2, behind=text)
    assert decoded(data) == of_array(PICTURE)
    deep = png(DEEP, 16, 2, text) if where == "before" else png(DEEP, 16, 2, behind=text)
    assert decoded(deep) == of_array(DEEP)


@pytest.mark.parametrize(
    "name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"eXIf", b"tIME"]
)
def test_a_wrong_checksum_of_what_says_nothing_of_pixels_is_passed_over(name):
    for data in (
        png(PICTURE, 8, 2, chunk(name, bytes(32), damaged=True)),
        png(PICTURE, 8, 2, behind=chunk(name, bytes(32), damaged=True)),
    ):
        assert decoded(data) == of_array(PICTURE)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"acTL", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_counts_is_refused(name):
    indices = PICTURE[..., :1] & 1
    more = [
        chunk(b"PLTE", bytes(range(6))),
        chunk(b"tRNS", b"\7"),
        chunk(b"acTL", struct.pack(">II", 1, 0)),
    ]
    data = bytearray(png(indices, 8, 3, *more))
    decoded(bytes(data))
    at = data.index(name)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    data[end] ^= 1
    refused(bytes(data), "checksum", name.decode())


def test_an_unknown_chunk_that_must_not_be_passed_over_is_refused():
    refused(png(PICTURE, 8, 2, chunk(b"CgBI", bytes(4))), "CgBI", "not supported")


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS"])
def test_what_may_come_once_and_comes_twice_is_refused(name):
    content = {
        b"IHDR": struct.pack(">IIBBBBB", 9, 9, 8, 3, 0, 0, 0),
        b"PLTE": bytes(6),
        b"tRNS": b"\0",
    }
    more = [chunk(b"PLTE", bytes(range(6))), chunk(b"tRNS", b"\7"), chunk(name, content[name])]
    refused(png(PICTURE[..., :1] & 1, 8, 3, *more), "two PNG chunks")


def test_pixels_in_many_chunks_between_text_are_read():
    lines = zlib.compress(b"".join(b"\0" + packed(line.reshape(1, -1), 8) for line in PICTURE))
    parts = [chunk(b"IDAT", lines[i : i + 5]) for i in range(0, len(lines), 5)]
    whole = png(PICTURE, 8, 2, chunk(b"tEXt", b"a\0b"))
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    assert decoded(whole[:start] + b"".join(parts) + whole[end:]) == of_array(PICTURE)


def test_the_orientation_of_a_png_is_found_among_its_text():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = of_array(np.rot90(PICTURE, -1))
    for where in ("before", "behind"):
        one = chunk(b"eXIf", exif.tobytes()[6:])
        more = [TEXTS["iCCP"], one, TEXTS["zTXt"]]
        data = (
            png(PICTURE, 8, 2, *more)
            if where == "before"
            else png(PICTURE, 8, 2, behind=b"".join(more))
        )
        assert decoded(data) == turned
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6">'
    assert decoded(png(PICTURE, 8, 2, chunk(b"iTXt", xmp))) == turned


def test_a_text_of_a_png_that_is_too_long_counts_among_those_that_are_looked_at():
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6">')
    turned = of_array(np.rot90(PICTURE, -1))
    assert decoded(png(PICTURE, 8, 2, TEXTS["exif in text"] * 7, xmp)) == turned
    # After eight of them: each takes as long as one that is read.
    assert decoded(png(PICTURE, 8, 2, TEXTS["exif in text"] * 8, xmp)) == of_array(PICTURE)
    # What is passed over by its name takes no time.
    others = chunk(b"tEXt", b"a\0b") * 20
    assert decoded(png(PICTURE, 8, 2, others, xmp)) == turned


def test_chunks_of_a_png_that_are_left_out_take_no_memory():
    dropped = png(PICTURE, 8, 2, behind=chunk(b"prIv", b"") * 2000)
    tracemalloc.start()
    try:
        pixels_only(dropped)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_the_chunks_of_a_png_count_for_its_memory():
    each = chunk(b"IDAT", b"") + chunk(b"prIv", b"")
    many = png(PICTURE, 8, 2, behind=each * 300)
    tracemalloc.start()
    try:
        kept = pixels_only(many)
        takes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept[1] == 1
    plain = png(PICTURE, 8, 2)
    assert memory_to_decode(many) - len(many) - (memory_to_decode(plain) - len(plain)) >= takes


def test_the_frames_of_a_png_are_counted_without_reading_them():
    frames = [Image.fromarray(PICTURE), Image.new("RGB", (7, 6)), Image.new("RGB", (7, 6), "red")]
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b")
    moving = save(frames[0], "PNG", save_all=True, append_images=frames[1:], pnginfo=info)
    hidden = save(
        frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True, pnginfo=info
    )
    for data, count in ((moving, 3), (hidden, 3)):
        found = decode(data).pixels
        assert found.frames == count == Image.open(io.BytesIO(data)).n_frames
        assert bytes(found.canonical)[16:] == PICTURE.tobytes()
        # A later frame says nothing of the pixels.
        broken = bytearray(data)
        broken[data.rindex(b"fdAT") + 9] ^= 1
        assert decoded(bytes(broken)) == bytes(found.canonical)
    claims = [struct.pack(">II", count, 0) for count in (2, 5)]
    still = png(PICTURE, 8, 2, *(chunk(b"acTL", claim) for claim in claims))
    assert decode(still).pixels.frames == 1


def test_why_a_file_is_not_known_is_said():
    refused(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(5)), "broken image")
    refused(png(PICTURE, 7, 2), "broken image")
    refused(tiff(PICTURE[..., :2], 8, photometric=1), "2 grey samples of 8 bits (unsigned)", "PNG")
    refused(b"II*\0" + bytes(40), "broken image")


# --- JPEG 2000 ------------------------------------------------------------------------------------


def jp2(
    codestream: bytes, size: tuple[int, int], *boxes_: bytes, parts: int = 1, depth: int = 8
) -> bytes:
    """A JP2 file of a codestream; ``boxes_`` come behind the image header."""
    ihdr = struct.pack(">IIHBBBB", *size[::-1], parts, depth - 1, 7, 0, 0)
    colour = box(b"colr", b"\1\0\0" + struct.pack(">I", 17 if parts < 3 else 16))
    header = box(b"jp2h", box(b"ihdr", ihdr), colour, *boxes_)
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + header + box(b"jp2c", codestream)


def codestream(array: np.ndarray) -> bytes:
    return save(array, "JPEG2000", no_jp2=True)


def with_depth(data: bytes, depth: int, *, signed: bool = False) -> bytes:
    """The same codestream, said to have another depth."""
    changed = bytearray(data)
    at = data.index(b"\xff\x4f\xff\x51")
    count = int.from_bytes(data[at + 40 : at + 42], "big")
    for i in range(count):
        changed[at + 42 + 3 * i] = depth - 1 | signed << 7
    return bytes(changed)


@pytest.mark.parametrize("boxed", [False, True])
def test_the_depth_of_a_jpeg2000_is_that_of_its_codestream(boxed):
    grey16 = RNG.integers(0, 65536, (6, 7), np.uint16)

    def file(stream: bytes, parts: int, depth: int) -> bytes:
        return jp2(stream, (7, 6), parts=parts, depth=depth) if boxed else stream

    assert decoded(file(codestream(grey16), 1, 16)) == of_array(grey16)
    assert decoded(file(codestream(PICTURE), 3, 8)) == of_array(PICTURE)
    for depth in (17, 24, 32):
        refused(
            file(with_depth(codestream(grey16), depth), 1, 16), f"{depth} bits", "not supported"
        )
    for depth in (9, 12, 16):
        refused(
            file(with_depth(codestream(PICTURE), depth), 3, 8), f"{depth} bits", "not supported"
        )
    refused(file(with_depth(codestream(PICTURE), 8, signed=True), 3, 8), "signed")
    if boxed:  # said to be 8-bit grey
        refused(file(codestream(grey16), 1, 8), "16 bits")


def test_what_only_looks_like_a_codestream_is_not_believed():
    grey16 = RNG.integers(0, 65536, (6, 7, 3), np.uint16)[..., 0]
    fake = box(b"free", codestream(PICTURE))
    whole = jp2(with_depth(codestream(PICTURE), 12), (7, 6), parts=3)
    at = whole.index(b"jp2h") - 4
    refused(whole[:at] + fake + whole[at:], "12 bits")
    honest = jp2(codestream(PICTURE), (7, 6), parts=3)
    fake = box(b"free", with_depth(codestream(grey16), 24))
    assert decoded(honest[:at] + fake + honest[at:]) == of_array(PICTURE)


@pytest.mark.parametrize("depth", [1, 2, 4, 7, 9, 10, 12, 15])
def test_samples_of_other_depths_of_a_jpeg2000_are_scaled(depth):
    if depth < 8:
        samples = RNG.integers(0, 1 << depth, (6, 7), np.uint8)
        want = np.rint(samples / ((1 << depth) - 1) * 255).astype(np.uint8)
    else:
        samples = RNG.integers(0, 1 << depth, (6, 7), np.uint16)
        want = np.rint(samples / ((1 << depth) - 1) * 65535).astype(np.uint16)
    # OpenJPEG shifts samples by half of the range that the header tells.
    half = (1 << (7 if depth < 8 else 15)) - (1 << (depth - 1))
    stream = with_depth(codestream(samples + samples.dtype.type(half)), depth)
    array = want.astype(bool) if depth == 1 else want
    assert decoded(stream) == of_array(array)


def test_a_jpeg2000_whose_header_and_codestream_disagree_is_refused():
    rgba = codestream(np.dstack([PICTURE, PICTURE[..., 0]]))
    refused(jp2(rgba, (7, 6), parts=3), "disagree")
    refused(jp2(codestream(PICTURE), (9, 6), parts=3), "disagree")


def test_a_jpeg2000_with_a_palette():
    table = RNG.integers(0, 256, (4, 3), np.uint8)
    table[2] = table[1]  # equal colours, as palettes may have
    indices = RNG.integers(0, 4, (6, 7), np.uint8)
    palette = box(b"pclr", struct.pack(">HB", 4, 3), b"\7\7\7", table.tobytes())
    mapping = box(b"cmap", *(struct.pack(">HBB", 0, 1, i) for i in range(3)))

    def file(values: np.ndarray, *more: bytes) -> bytes:
        head = jp2(codestream(values), (7, 6), palette, mapping, *more)
        return head.replace(struct.pack(">I", 17), struct.pack(">I", 16), 1)

    assert decoded(file(indices)) == of_array(table[indices])
    indices[1, 1] = 9
    refused(file(indices), "palette")
    deep = box(b"pclr", struct.pack(">HB", 2, 3), b"\x0f\x0f\x0f", bytes(12))
    refused(jp2(codestream(indices), (7, 6), deep, mapping), "palette")


def test_a_jpeg2000_of_too_many_boxes_is_refused_by_its_header():
    data = jp2(codestream(PICTURE), (7, 6), parts=3)
    at = data.index(b"jp2h") - 4
    many = data[:at] + box(b"free") * 10_000 + data[at:]
    with pytest.raises(ImageError, match="too many boxes"):
        jpeg2000.header_cost(many)
    refused(many, "too many boxes")


def test_channels_of_a_jpeg2000_in_another_order_are_refused():
    def cdef(*entries: tuple[int, int, int]) -> bytes:
        return box(
            b"cdef", struct.pack(">H", len(entries)), *(struct.pack(">HHH", *e) for e in entries)
        )

    straight = cdef((0, 0, 1), (1, 0, 2), (2, 0, 3))
    assert decoded(jp2(codestream(PICTURE), (7, 6), straight, parts=3)) == of_array(PICTURE)
    refused(
        jp2(codestream(PICTURE), (7, 6), cdef((0, 0, 3), (1, 0, 2), (2, 0, 1)), parts=3), "order"
    )


# --- AVIF -----------------------------------------------------------------------------------------

# 4 × 4 pixels of one grey at 10 bits.
DEEP_AVIF = base64.b85decode(
    "0000WW^{RQVRmU|00000VRmU|ZE0pPZE0a<O+hh20002%ZDn*}000000000XXk=`10000000000aA{+7000000000000000000004sdC7Z2$lO0003"
    "10016oY;R)#0000)000310RR910RR926951J9{>OVC~0YKW&i*H00031000_kZf0cy000000RRADb}%tRZ)|UJ00000YH4tCZ~y=ROKEUpZvX%Q6"
    "lrsCWdHyG000001ONa41ONa45O8UDX#fBK00RmN3IG5A3}JRLLxBKH000006Ju{|a&BX6cmM$a4FCp!0000NX>e^}0000000001009I60)qqq001"
    "X#WMOm?015~g1bwOk8Vv|C5gx~fg<0SK|KiWU0FX6~JaG"
)


def saying_8_bits(data: bytes) -> bytes:
    """The same bitstream in a file that says it has 8 bits."""
    changed = bytearray(data)
    changed[data.index(b"av1C") + 6] &= ~0x60 & 255
    at = data.index(b"pixi") + 8
    changed[at + 1 : at + 1 + changed[at]] = bytes([8]) * changed[at]
    return bytes(changed)


def test_the_depth_of_an_avif_is_that_of_its_bitstream():
    refused(DEEP_AVIF, "10 bits", "not supported")
    forged = saying_8_bits(DEEP_AVIF)
    with Image.open(io.BytesIO(forged)) as image:
        image.load()  # Pillow believes it, and reduces the pixels
    refused(forged, "10 bits", "not supported")


def test_what_only_looks_like_a_configuration_is_not_believed():
    def with_free(data: bytes, content: bytes) -> bytes:
        end = int.from_bytes(data[:4], "big")
        added = box(b"free", content)
        # Places in the file move; they are 4 bytes each in the first "iloc" that Pillow writes.
        moved = bytearray(data)
        at = data.index(b"iloc") + 4
        count = int.from_bytes(data[at + 6 : at + 8], "big")
        place = at + 8
        for _ in range(count):
            place += 6
            old = int.from_bytes(data[place : place + 4], "big")
            moved[place : place + 4] = (old + len(added)).to_bytes(4, "big")
            place += 8
        return bytes(moved[:end]) + added + bytes(moved[end:])

    smooth = np.full((16, 16, 3), 99, np.uint8)
    honest = save(smooth, "AVIF")
    claims = b"av1C\x81\x40\x40\0", b"av1C\x81\0\0\0"
    assert decoded(with_free(honest, claims[0])) == decoded(honest)
    forged = with_free(saying_8_bits(DEEP_AVIF), claims[1])
    with Image.open(io.BytesIO(forged)) as image:
        image.load()
    refused(forged, "10 bits")


def test_the_alpha_and_the_frames_of_an_avif_are_looked_at():
    alpha = save(Image.new("RGBA", (16, 16), (1, 2, 3, 77)), "AVIF")
    moving = save(
        Image.new("RGB", (16, 16)),
        "AVIF",
        save_all=True,
        append_images=[Image.new("RGB", (16, 16), "red")],
    )
    for data in (alpha, moving):
        decoded(data)
        changed = bytearray(data)
        changed[data.rindex(b"av1C") + 6] |= 0x40
        with pytest.raises(ImageError, match="10 bits"):
            avif.refuse_reduced(bytes(changed))
    assert decode(moving).pixels.frames == 2


def test_only_the_exif_of_an_avif_is_hidden():
    exif = Image.Exif()
    exif[0x010E] = "Exif"
    whole = save(PICTURE, "AVIF", exif=exif)
    at = whole.index(b"infe", whole.index(b"infe") + 4) + 12
    assert whole[at : at + 4] == b"Exif"
    # The same entry stands before the boxes too, where it is none.
    before = box(b"free", whole[at - 16 : at + 20])
    assert avif.without_exif(before + whole) == before + whole[:at] + b"free" + whole[at + 4 :]
    assert avif.without_exif(save(PICTURE, "AVIF")) is None


def test_the_exif_of_an_avif_may_be_broken():
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description of the picture", 6
    whole = save(PICTURE, "AVIF", exif=exif)
    at = whole.rindex(b"MM\0*" if b"MM\0*" in whole else b"II*\0")
    assert decoded(whole[:at] + b"XXXX" + whole[at + 4 :]) == decoded(whole)
    assert decode(whole).pixels.width == 6


def test_an_avif_that_does_not_hold_together_is_refused():
    data = save(np.full((16, 16, 3), 99, np.uint8), "AVIF")
    for at in range(0, len(data), 3):  # every cut, and every byte gone wrong
        for broken in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
            try:
                avif.refuse_reduced(broken)
            except ImageError as error:
                assert len(str(error).splitlines()) == 1


def test_an_avif_in_pieces_is_put_together():
    saved = save(np.full((16, 16, 3), 99, np.uint8), "AVIF")
    length = len(saved) - saved.index(b"mdat") - 4
    whole = avif_of(saved, (0, length))
    pieces = avif_of(saved, (0, 20), (20, length - 20))
    assert decoded(pieces) == decoded(whole) == decoded(saved)
    # Pieces are copied, here and by the decoder.
    assert memory_to_decode(pieces) - len(pieces) == memory_to_decode(whole) - len(whole) + length


@pytest.mark.slow
def test_an_avif_whose_pieces_are_more_than_the_file_is_refused():
    saved = save(np.full((16, 16, 3), 99, np.uint8), "AVIF")
    # Each of them takes no byte in the file, and is the whole rest of it.
    for count, words in ((20, "does not fit"), (65_535, "10,000 pieces")):
        with pytest.raises(ImageError, match=words):
            avif.refuse_reduced(avif_of(saved, *[(0, 0)] * count, widths=0))


def test_a_reference_that_an_avif_repeats_counts_once():
    found = AvifItems({1: AvifItem(), 2: AvifItem(parts=[*range(3, 2003)])}, {1: [2] * 2000})
    tracemalloc.start()
    try:
        assert len(list(found.read_for(1))) == 2002
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_an_avif_of_too_many_properties_is_refused():
    saved = save(np.full((16, 16, 3), 99, np.uint8), "AVIF")
    at = saved.index(b"ipma") - 4
    one = saved[at : at + int.from_bytes(saved[at : at + 4], "big")]
    many = one[8:12] + struct.pack(">I", 258) + (b"\0\1\xff" + bytes(255)) * 258
    properties = box(b"ipco") + box(b"ipma", many)
    meta = box(b"meta", bytes(4), box(b"pitm", bytes(4), b"\0\1"), box(b"iprp", properties))
    with pytest.raises(ImageError, match="properties or references"):
        avif.refuse_reduced(saved[:32] + meta)


@pytest.mark.slow
def test_an_avif_of_too_many_units_is_refused():
    saved = save(np.full((16, 16, 3), 99, np.uint8), "AVIF")
    picture = saved[saved.index(b"mdat") + 4 :]
    padding = b"\x7a\0" * 65_536
    padded = saved[: -len(picture)] + padding + picture
    with pytest.raises(ImageError, match="65,536 units"):
        avif.refuse_reduced(avif_of(padded, (0, len(padding + picture))))


@pytest.mark.parametrize("planar", [1, 2])
def test_deep_tiffs_take_more_memory_by_their_headers(planar):
    deep = memory_to_decode(tiff(DEEP, 16, photometric=2, planar=planar))
    assert deep > memory_to_decode(tiff(DEEP >> 8, 8, photometric=2, planar=planar))
    table = np.arange(48, dtype=np.uint32).reshape(16, 3) * 257
    indices = DEEP[..., :1] & 15
    plain = memory_to_decode(tiff(indices, 4, photometric=3, colormap=table))
    table[1] += 7
    assert memory_to_decode(tiff(indices, 4, photometric=3, colormap=table)) > plain
