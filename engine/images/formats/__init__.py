"""What is in an image file, by its format: what decoding it costs, and its true samples.

Every module knows one format. It answers one to three questions about a file in memory:

``header_cost``   what decoding it takes beside its pixels, by its headers and before Pillow opens it;
                  ``ImageError`` for work out of all proportion to its size.
``read``          (H, W, 3 or 4) of uint8 or uint16 with the true samples of a file that Pillow has
                  opened; ``ImageError`` with what is not supported and what to do about it. Identity is
                  decided by samples, so each one must reach the canonical pixels, also where Pillow
                  reads a format wrongly, or only in part. It takes what of the file it needs: its
                  bytes, or the file opened a second time.
``refusal``       why a file cannot be opened, where Pillow's own reason does not tell.

``dispatch`` asks the module of a file's format, ``opening`` opens a file through Pillow, ``cost`` turns
what headers say into bytes of memory. ``boxes``, ``av1``, ``avif_items``, ``jpeg2000_codestream``,
``tiff_directories`` and ``tiff_tags`` parse what the formats are made of.
"""
