"""Distillation: a student learns the next-token distributions of a teacher, on its own answers or on those of the data (GKD)."""
