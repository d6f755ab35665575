"""Mends the damage that a check found: makes derived data again, and reports what is lost."""
