"""What is measured: bit images, photographs, vectors, sets of them, exact neighbours."""
