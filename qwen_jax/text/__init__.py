"""Text and tokens, chat templates and transcripts. No JAX in here."""
