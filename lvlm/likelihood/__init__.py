"""Bounds on the likelihood: particles, weights, filters and estimators, from a model and rows of tokens."""
