"""Encoders turn pictures into unit vectors. ``registry`` finds one, and ``onnx`` runs it."""
