"""Importers turn the models of other libraries into encoder folders, the form that the engine runs.

A model is named ``PREFIX:REST``, such as ``timm:vit_small_patch14_dinov2`` (``specs``). The prefix
chooses an ``Importer`` (``catalogue``): those of the engine, and those of packages with an entry point
in the group ``engine.encoders``, whose value is an ``Importer`` and whose name is the prefix. ``run``
finds it, checks that its libraries are installed, and publishes the finished folder in one rename.
``cache`` does so once for a model, in the user's cache.

An importer is a function of an ``ImportRequest`` (``request``). It builds a model and calls one of
these, which write the folder and return an ``ImportReport``:

- ``tower.write_encoder``: a ``torch.nn.Module``, (n, 3, S, S) float32 normalised → (n, d) float32;
- ``folder.write_folder``: an ONNX file, ``pixels`` (n, S, S, 3) uint8 → ``embedding`` (n, d) float32.

Both can put more files into the folder, and more fields into ``encoder.json``. Other help:
``weights.read_weights`` and ``weights.fit`` load weights from files that are not trusted, ``layers``
parses ``layer=``, ``hub.fetching`` explains why something cannot be downloaded.

The modules of an importer may import torch and other heavy libraries at the top, because they
are themselves imported only when a model is imported. ``specs``, ``catalogue``, ``request``, ``run``,
``cache`` and ``onnx_inputs`` import none.
"""
