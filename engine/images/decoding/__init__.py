"""What decoding an image file costs, in memory and in time, by its headers: before it is decoded.

``opening`` opens a file through Pillow without its process-wide limit of pixels, and has its headers
read first: ``jpeg``, ``tiff``, ``gif``, ``jpeg2000`` and ``avif`` refuse files whose work is out of all
proportion to their size. ``cost`` turns what they found into bytes of memory.
"""
