"""Exports of runs: weights and recipe alone, or graphs for other runtimes."""
