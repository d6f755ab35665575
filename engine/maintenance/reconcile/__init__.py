"""Makes the tables of the keys agree again, where rows of them were lost."""
