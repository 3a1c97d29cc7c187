"""Benchmarks through EvalScope against a checkpoint or an endpoint."""
