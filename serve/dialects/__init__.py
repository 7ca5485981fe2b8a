"""Other dialects: each translates its requests to a conversation, and the answer back."""
