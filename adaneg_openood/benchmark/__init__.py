"""Benchmarks as YAML: what they say, whether they are complete, and running them."""
