"""The commands, one a module: each parses, makes one call and prints."""
