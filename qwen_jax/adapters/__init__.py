"""Adapters in PEFT's format: read, added to a network, extracted from it, written."""
