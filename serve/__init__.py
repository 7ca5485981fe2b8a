"""Serve a model to many users: `python -m serve --model demo`."""
