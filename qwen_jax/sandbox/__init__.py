"""What strangers' files have us compute, where it can take neither time nor memory without end."""
