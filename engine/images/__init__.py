"""What an image is: bytes to canonical pixels, and the hashes and fingerprints of these.

    file bytes, PIL images, arrays  →  decode, pil_images  →  canonical  →  hashing, fingerprint

``formats`` knows what is in a file of each format. ``packed_bits`` are bit images as callers hand them
over, ``rgb_picture`` is what fingerprints and encoders look at, ``file_types`` says which files claim to
be images, and ``orientation`` turns them as their EXIF says.
"""
