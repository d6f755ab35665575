"""Which files claim to be images: by their names, or by their first bytes."""

import numpy as np
import pytest
from helpers import encoded
from PIL import Image, TiffImagePlugin

from engine.images.decode import decode
from engine.images.file_types import SUFFIXES, format_of, looks_like_image

# Pillow warns of oddities in the broken files made here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:240:4, 0:250:5], 99), -1).astype(np.uint8)


# --- names, signatures, headers -------------------------------------------------------------------

UNSIGNED = {"TGA", "DIB"}  # known by their names alone: other files begin like them


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_is_of_a_format_that_is_read_and_signed(suffix):
    form = Image.registered_extensions()[suffix]
    data = encoded(SMOOTH[:16, :16], form)
    decode(data)
    assert looks_like_image(data[:32]) is (form not in UNSIGNED)
    named = "JPEG" if form == "MPO" else form
    assert format_of(data[:32]) == (named if form not in UNSIGNED else None)


@pytest.mark.parametrize("prefix", TiffImagePlugin.PREFIXES)
def test_every_tiff_that_pillow_takes_is_signed(prefix):
    assert format_of(prefix + bytes(28)) == "TIFF"


@pytest.mark.parametrize("head", [b"", b"text, and more of it", bytes(32), b"PK\3\4" + bytes(28)])
def test_other_files_are_not_signed_as_images(head):
    assert not looks_like_image(head)
