"""Turns sources into commits: worker threads prepare images, and one writer commits them."""
