"""Evaluation of runs: bounds on test windows, stored beside the run; tasks of lm-evaluation-harness."""
