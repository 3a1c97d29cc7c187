"""Layers computed in fewer passes over memory, with the same formulas and weights."""
