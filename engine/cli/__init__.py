"""The command ``engine``: each command parses, makes one call and prints."""
