"""Inference engines behind one protocol, batch and terminal chat, and an OpenAI-compatible server."""
