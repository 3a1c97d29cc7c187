"""How a model is spread over processes: one file for each engine."""
