"""Preference and reinforcement learning losses, advantages and rewards."""
