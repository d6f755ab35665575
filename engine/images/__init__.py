"""What an image is: bytes to canonical pixels, and the hashes and fingerprints of these."""
