"""Optimizers that save memory, one idea a file."""
