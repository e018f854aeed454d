"""Trained networks in files: checkpoints of a run, safetensors, and the fingerprint that both hold."""
