"""Benchmarks: ratios with both sides in one process, in turn, with medians. Nothing here asserts a time.

python -m tests.benchmarks                 all of them
python -m tests.benchmarks training        one
"""
