"""The write path: sources to committed images, chunk by chunk."""
