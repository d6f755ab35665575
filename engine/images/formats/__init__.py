"""What Pillow reads wrongly, or only in part, of each format; and what has to be refused for it.

Identity is decided by samples, so each sample of a file must reach the canonical pixels. Every module
here has a ``read`` for a file that Pillow has opened: it returns (H, W, 3 or 4) of uint8 or uint16 with
the true samples, or raises ``ImageError`` with what is not supported and what to do about it.
"""
