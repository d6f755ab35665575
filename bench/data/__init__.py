"""The data of the benchmarks: bit images, photographs, vectors, sets of them, exact neighbours."""
