"""What every program shares: its arguments, its progress, Ctrl-C, what is kept, its processes."""

import time

BEGAN = time.monotonic()  # as good as the process: this is imported before what takes long
