"""What `qwen_jax.evaluate` finds for a real model, beside transformers and lm-eval."""
