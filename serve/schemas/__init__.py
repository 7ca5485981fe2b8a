"""What the bodies of requests may hold, and what of it asks for nothing."""
