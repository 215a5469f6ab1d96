"""Benchmarks: each compares in one run, alternating, and prints ratios with their spread."""
