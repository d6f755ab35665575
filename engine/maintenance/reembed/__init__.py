"""Computes the vectors of a store's images with another encoder, and switches to them."""
