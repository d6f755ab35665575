"""What a run leaves: results, comparison, growth, tables, plots, a page."""
