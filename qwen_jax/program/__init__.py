"""What every program shares: its arguments, its progress, Ctrl-C, what is kept, its processes."""
