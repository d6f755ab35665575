"""PIL images of opened files: what their file is, whatever was done to them."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded
from layouts import chunk, png, tiff
from PIL import Image, ImageOps

from engine.errors import ImageError, UsageError
from engine.images.canonical import from_array
from engine.images.decode import decode
from engine.images.pil_images import from_image
from engine.images.rgb_picture import to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

RNG = np.random.default_rng(20250712)
PICTURE = RNG.integers(0, 256, (6, 7, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 7, 3), np.uint16)


def decoded(data: bytes) -> bytes:
    return bytes(decode(data).pixels.canonical)


# --- PIL images of opened files -------------------------------------------------------------------


def opened_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (7, 6), colour) for colour in ("orange", "navy", "teal")]
    moving = {"save_all": True, "append_images": frames[1:]}
    palette = Image.fromarray(PICTURE).quantize(16)
    grey_alpha = Image.fromarray(PICTURE).convert("LA")
    return {
        "turned jpeg": encoded(PICTURE, "JPEG", exif=exif),
        "turned png": encoded(PICTURE, "PNG", exif=exif),
        "turned webp": encoded(PICTURE, "WEBP", exif=exif),
        "turned tiff": encoded(PICTURE, "TIFF", exif=exif),
        "turned avif": encoded(PICTURE, "AVIF", exif=exif),
        "cmyk": encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
        "palette": encoded(palette, "PNG"),
        "transparent palette": encoded(palette, "PNG", transparency=3),
        "grey and alpha": encoded(grey_alpha, "PNG"),
        "bits": encoded(Image.fromarray(PICTURE[..., 0] > 99), "PNG"),
        "moving gif": encoded(frames[0], "GIF", **moving),
        "moving png": encoded(frames[0], "PNG", **moving),
        "moving webp": encoded(frames[0], "WEBP", **moving),
        "pages": encoded(frames[0], "TIFF", **moving),
        "mpo": encoded(frames[0], "MPO", exif=exif, **moving),
        "grey of 16 bits": encoded(DEEP[..., 0], "PNG"),
        "transparent grey of 16 bits": png(
            DEEP[..., :1], 16, 0, chunk(b"tRNS", DEEP[1, 1, :1].astype(">u2").tobytes())
        ),
        "pgm of 16 bits": encoded(DEEP[..., 0], "PPM"),
    }


FILES = opened_files()
# What Pillow has reduced once its pixels are loaded.
REDUCED = {
    "colour of 16 bits": png(DEEP, 16, 2),
    "grey and alpha of 16 bits": png(DEEP[..., :2], 16, 4),
    "tiff of 16 bits": tiff(DEEP, 16, photometric=2),
    "tiff in which white is 0": tiff(DEEP[..., :1], 16, photometric=0),
    "transparent grey of 4 bits": png(PICTURE[..., :1] >> 4, 4, 0, chunk(b"tRNS", b"\0\5")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES | REDUCED)
def test_an_opened_image_is_what_its_file_is(name, tmp_path: Path):
    data = (FILES | REDUCED)[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    for opened in (Image.open(path), Image.open(io.BytesIO(data))):
        with opened:
            assert from_image(opened).canonical == decoded(data)
            opened.load()  # the file was left as it was
            if name in REDUCED:
                if opened.filename or "tiff" in name or "4 bits" in name:
                    with pytest.raises(UsageError, match="pass the file"):
                        from_image(opened)
                continue
            for _ in range(2):
                assert from_image(opened).canonical == decoded(data)


@pytest.mark.parametrize("name", [name for name in FILES if "turned" in name])
def test_what_is_made_of_an_opened_image_is_taken_as_it_is(name):
    data = FILES[name]
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        assert from_image(upright).canonical == decoded(data)
        as_it_lies = Image.fromarray(np.asarray(opened))
        for made in (opened.copy(), opened.convert("RGB"), opened.crop((0, 0, *opened.size))):
            assert from_image(made).canonical == from_image(as_it_lies).canonical
        ImageOps.exif_transpose(opened, in_place=True)
        assert from_image(opened).canonical == decoded(data)


def test_changes_to_an_opened_image_count_and_stay():
    with Image.open(io.BytesIO(FILES["moving gif"])) as opened:
        opened.load()
        opened.putpixel((1, 1), 9)
        found = from_image(opened)
        assert found.frames == 3
        assert found.canonical != decoded(FILES["moving gif"])
        assert opened.getpixel((1, 1)) == 9


def test_a_later_frame_is_a_still_image():
    for name in ("moving gif", "moving png", "moving webp", "pages"):
        with Image.open(io.BytesIO(FILES[name])) as opened:
            opened.seek(2)
            found = from_image(opened)
            assert found.frames == 1
            assert to_rgb8(found)[0, 0].tolist() == list(opened.convert("RGB").getpixel((0, 0)))


def test_a_pickled_image_is_its_pixels():
    for name in ("moving gif", "moving png", "palette", "turned jpeg", "pages"):
        with Image.open(io.BytesIO(FILES[name])) as opened:
            found = from_image(pickle.loads(pickle.dumps(opened)))
        assert found.frames == 1
        assert bytes(found.canonical)[16:] == decoded(FILES[name])[16:]


def test_an_image_that_is_opened_smaller_is_smaller():
    data = encoded(np.asarray(Image.fromarray(PICTURE).resize((320, 240))), "JPEG")
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (80, 60))
        assert (from_image(opened).width, opened.size) == (80, (80, 60))


def test_a_pil_image_that_would_be_reduced_is_refused():
    loaded = Image.open(io.BytesIO(tiff(DEEP, 16, photometric=2)))
    assert from_image(loaded).canonical == from_array(DEEP).canonical
    loaded.load()
    with pytest.raises(UsageError, match="reduced"):
        from_image(loaded)
    for mode in ("I", "F"):
        with pytest.raises(UsageError, match="16 bits"):
            from_image(Image.new(mode, (3, 3)))


def test_a_16_bit_grey_pil_image_is_read_without_loss():
    grey = png(DEEP[..., :1], 16, 0)
    assert from_image(Image.open(io.BytesIO(grey))).canonical == from_array(DEEP[..., 0]).canonical


def test_a_pil_image_that_cannot_be_read_is_an_image_error():
    with pytest.raises(ImageError, match="truncated"):
        from_image(Image.open(io.BytesIO(encoded(PICTURE, "BMP")[:100])))
