"""What a model takes on devices that need not be there: bytes, limits of speed, what fits."""
