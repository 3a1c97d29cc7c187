"""LoRA and other light-weight ways to adapt a model, with merge."""
