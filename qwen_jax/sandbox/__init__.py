"""What strangers would have us compute, where it takes neither time nor memory without end."""
