"""The read path: finds the images that are identical, near or similar to a query."""
