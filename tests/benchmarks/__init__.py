"""Benchmarks of the foundation; `python -m tests.benchmarks` runs them all and prints one table."""
