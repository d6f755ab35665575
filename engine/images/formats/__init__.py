"""The file formats: what decoding a file costs, and its true samples.

Each module handles one format, and has one to three of these functions for a file in memory:

``header_cost``   returns what decoding takes in addition to the pixels, from the headers, before Pillow
                  opens the file. ``ImageError`` for a file that would take far too long for its size.
``read``          returns (H, W, 3 or 4) uint8 or uint16: the true samples of a file that Pillow has
                  opened. ``ImageError`` says what is not supported and what to do about it. Samples
                  decide identity, so each one must reach the canonical pixels, even where Pillow reads
                  a format wrongly or only in part. It takes what it needs of the file: the bytes, or
                  the file opened a second time.
``refusal``       returns why a file cannot be opened, where Pillow's own reason is no help.

``dispatch`` calls the module of a file's format, ``opening`` opens a file through Pillow, and ``cost``
converts header costs to bytes of memory. ``boxes``, ``av1``, ``avif_items``, ``jpeg2000_codestream``,
``tiff_directories`` and ``tiff_tags`` parse parts of the formats.
"""
