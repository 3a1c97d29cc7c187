"""Reward models: a number for how good an answer is, learned from pairs."""
