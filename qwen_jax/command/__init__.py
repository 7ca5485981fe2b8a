"""The command `generate`, and what the terminal chat shares with it."""
