"""Encoders: pictures to unit vectors. ``registry`` finds one, ``onnx`` runs it."""
