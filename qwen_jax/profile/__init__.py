"""Speed and memory of generation, beside the published tables."""
