"""Scheduling on the host: which request gets which slot, and what the device does next."""
