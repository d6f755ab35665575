"""Sources of images: every kind of source becomes a stream of ``items`` in a stable order.

``locate`` finds out what a SOURCE or an IMAGE argument is. ``source_stream`` reads several sources, and
``query`` reads the images of a lookup. The kinds of sources: ``files``; ``tar_archive`` and
``zip_archive``; ``parquet_table``; ``arrays`` and ``vectors`` (``.npy`` and ``.npz``); ``synthetic``;
``in_memory``.
"""
