"""Makes the tables of the keys agree again after rows were lost."""
