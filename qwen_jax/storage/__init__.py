"""Checkpoints on a disk: our native format, safetensors files, Hugging Face's names and configs."""
