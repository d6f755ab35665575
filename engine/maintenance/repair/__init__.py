"""Mends what a check found: makes again what is derived, and sets aside what is lost, naming it."""
