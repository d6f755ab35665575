"""Where images come from: whatever a source is, it becomes a stream of ``items`` in a stable order.

``locate`` says what a SOURCE or an IMAGE argument is; ``source_stream`` reads several sources,
``query`` the images to be looked up. One kind of source each: ``files``; ``tar_archive`` and
``zip_archive``; ``parquet_table``; ``arrays`` and ``vectors`` (``.npy`` and ``.npz``); ``synthetic``;
``in_memory``.
"""
