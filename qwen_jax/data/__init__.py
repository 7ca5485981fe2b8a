"""Conversations and texts in files, for training and calibration: JSON, JSON lines, plain text."""
