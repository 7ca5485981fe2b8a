"""The rows of the published tables: a declaration and a judge for each."""
