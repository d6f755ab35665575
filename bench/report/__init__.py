"""The output of a run: results, comparison, growth, tables, plots, a page."""
