"""Clients that people use, against a real server of the bundled model: make clients."""
