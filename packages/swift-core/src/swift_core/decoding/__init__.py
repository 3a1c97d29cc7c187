"""Writing tokens with a causal language model: keys and values, draws, rows that come and go."""
