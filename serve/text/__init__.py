"""Answers as text: messages, thoughts, functions that are called, grammars that are followed."""
