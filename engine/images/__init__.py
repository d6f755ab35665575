"""Images: from bytes to canonical pixels, and from these to hashes and fingerprints.

    file bytes, PIL images, arrays  →  decode, pil_images  →  canonical  →  hashing, fingerprint

``formats`` knows the structure of each file format. ``packed_bits`` holds bit images that callers pass.
``rgb_picture`` makes the pictures for fingerprints and encoders. ``file_types`` detects image files, and
``orientation`` turns images as their EXIF says.
"""
