"""One module per command. A command parses its options, makes one call and prints."""
