"""Little writers of image files: any samples in any layout, so that the true pixels are known."""

import struct
import zlib

import numpy as np


def packed(rows: np.ndarray, bits: int, order: str = ">", *, reverse: bool = False) -> bytes:
    """Rows (n, samples) of integers at ``bits`` each, every row padded to whole bytes."""
    if bits >= 8 and bits % 8 == 0:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    each = (rows.astype(np.uint32)[..., None] >> shifts & 1).astype(np.uint8)
    return np.packbits(each.reshape(len(rows), -1), axis=1).tobytes()


def reversed_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")).tobytes()


def packbits(data: bytes) -> bytes:
    """The PackBits compression of TIFF, without looking for runs."""
    parts = (data[at : at + 128] for at in range(0, len(data), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def tiff(
    samples: np.ndarray,
    bits: int,
    *,
    photometric: int,
    order: str = "<",
    planar: int = 1,
    compression: int = 1,
    rows: int = 0,
    tile: int = 0,
    extra: tuple[int, ...] = (),
    form: int = 1,
    fill: int = 1,
    colormap: np.ndarray | None = None,
    raw: bytes | None = None,
    tags: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """A TIFF of (H, W, C) samples, in strips of ``rows`` lines or square tiles of ``tile`` pixels."""
    height, width, channels = samples.shape
    planes = [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(channels)]
    blocks = []
    for plane in planes:
        if tile:
            down, across = -(-height // tile) * tile, -(-width // tile) * tile
            whole = np.zeros((down, across, plane.shape[2]), plane.dtype)
            whole[:height, :width] = plane
            blocks += [
                whole[y : y + tile, x : x + tile]
                for y in range(0, down, tile)
                for x in range(0, across, tile)
            ]
        else:
            step = rows or height
            blocks += [plane[y : y + step] for y in range(0, height, step)]
    strips = [
        raw if raw is not None else packed(b.reshape(len(b), -1), bits, order) for b in blocks
    ]
    if fill == 2 and compression == 1:
        strips = [reversed_bits(strip) for strip in strips]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    if compression == 32773:
        strips = [packbits(strip) for strip in strips]
    places = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    lengths = [len(strip) for strip in strips]
    entries: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (266, 3, [fill]),
        (277, 3, [channels]),
        (284, 3, [planar]),
        (339, 3, [form] * channels),
    ]
    if tile:
        entries += [(322, 3, [tile]), (323, 3, [tile]), (324, 4, places), (325, 4, lengths)]
    else:
        entries += [(273, 4, places), (278, 4, [rows or height]), (279, 4, lengths)]
    if extra:
        entries.append((338, 3, list(extra)))
    if colormap is not None:
        entries.append((320, 3, [int(value) for value in colormap.T.reshape(-1)]))
    entries += [(tag, 3, [value]) for tag, value in tags]
    entries.sort()
    at = 8 + sum(lengths)
    end = at + 2 + 12 * len(entries) + 4
    outside, directory = b"", struct.pack(order + "H", len(entries))
    for tag, kind, values in entries:
        data = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            data, outside = struct.pack(order + "I", end + len(outside)), outside + data
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + b"".join(strips) + directory + bytes(4) + outside


def chunk(name: bytes, content: bytes, *, damaged: bool = False) -> bytes:
    """A chunk of a PNG, or one with a wrong checksum."""
    crc = zlib.crc32(name + content) ^ damaged
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *more: bytes,
    interlaced: bool = False,
    behind: bytes = b"",
) -> bytes:
    """A PNG of (H, W, C) samples; ``more`` are chunks before the pixels, ``behind`` is after them."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    lines = [
        b"\0" + packed(line.reshape(1, -1), depth) for part in passes if part.size for line in part
    ]
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more)
    return start + chunk(b"IDAT", zlib.compress(b"".join(lines))) + behind + chunk(b"IEND", b"")


def bmp(
    samples: np.ndarray,
    bits: int,
    *,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
    header: int = 40,
    top_down: bool = False,
    used: int = 0,
    compression: int | None = None,
    raw: bytes | None = None,
) -> bytes:
    """A BMP of (H, W) values of ``bits`` each: indices, or colours as they lie in a word."""
    height, width = samples.shape
    lines = samples if top_down else samples[::-1]
    if raw is None:
        if bits < 8:
            body = [packed(line[None], bits) for line in lines]
        else:
            each = bits // 8
            body = [
                line.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :each].tobytes()
                for line in lines
            ]
        raw = b"".join(line.ljust(-(-len(line) // 4) * 4, b"\0") for line in body)
    table = b""
    if palette is not None:
        wide = 3 if header == 12 else 4
        table = b"".join(bytes([b, g, r, 0][:wide]) for r, g, b in palette)
    if compression is None:
        compression = 3 if masks else 0
    outside = struct.pack(f"<{len(masks)}I", *masks)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            -height if top_down else height,
            1,
            bits,
            compression,
            len(raw),
            0,
            0,
            used,
            0,
        )
        info = (info + outside).ljust(header, b"\0") if header > 40 else info + outside
    at = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", at + len(raw), 0, 0, at) + info + table + raw


def tga(
    samples: np.ndarray,
    kind: int,
    depth: int,
    *,
    flags: int = 0x20,
    palette: bytes = b"",
    map_depth: int = 0,
    map_start: int = 0,
) -> bytes:
    """A TGA of (H, W, bytes a pixel), from the top or (``flags``) the bottom; 8 more is run-length."""
    height, width, _ = samples.shape
    count = len(palette) * 8 // map_depth if map_depth else 0
    head = struct.pack(
        "<BBBHHBHHHHBB",
        0,
        int(bool(map_depth)),
        kind,
        map_start,
        count,
        map_depth,
        0,
        0,
        width,
        height,
        depth,
        flags,
    )
    lines = samples if flags & 0x20 else samples[::-1]
    lines = lines[:, ::-1] if flags & 0x10 else lines
    if kind & 8:
        body = b"".join(bytes([width - 1]) + line.tobytes() for line in lines)
    else:
        body = lines.tobytes()
    return head + palette + body


def pnm(samples: np.ndarray, kind: int, highest: int) -> bytes:
    """A PNM: P1 to P3 in digits, P4 to P6 in bytes."""
    height, width = samples.shape[:2]
    head = f"P{kind} {width} {height}" + ("" if kind in (1, 4) else f" {highest}") + "\n"
    flat = samples.reshape(height, -1)
    if kind <= 3:
        return (
            head.encode() + b"\n".join(b" ".join(b"%d" % v for v in line) for line in flat) + b"\n"
        )
    return head.encode() + packed(flat, 1 if kind == 4 else 8 if highest < 256 else 16)


def box(name: bytes, *content: bytes) -> bytes:
    """A box of an ISO base media file."""
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name + data


def avif_of(saved: bytes, *extents: tuple[int, int], widths: int = 0x44) -> bytes:
    """A still AVIF that Pillow has saved, with its picture in ``extents`` (start and length in it).

    ``widths`` is the number of bytes of either, half a byte each.
    """
    picture = saved[saved.index(b"mdat") + 4 :]
    start = saved.index(b"iprp") - 4
    properties = saved[start : start + int.from_bytes(saved[start : start + 4], "big")]

    def meta(base: int) -> bytes:
        places = b"".join(
            (base + offset).to_bytes(4, "big")[: widths >> 4]
            + length.to_bytes(4, "big")[: widths & 15]
            for offset, length in extents
        )
        # The base offset is where an extent without an offset lies.
        head = struct.pack(
            ">BBHHHIH", widths, 0x40, 1, 1, 0, 0 if widths >> 4 else base, len(extents)
        )
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), b"\0\1"),
            box(b"iloc", bytes(4), head, places),
            box(b"iinf", bytes(4), b"\0\1", box(b"infe", b"\2\0\0\0\0\1\0\0av01\0")),
            properties,
        )

    front = saved[: int.from_bytes(saved[:4], "big")]
    base = len(front) + len(meta(0)) + 8
    return front + meta(base) + box(b"mdat", picture)
