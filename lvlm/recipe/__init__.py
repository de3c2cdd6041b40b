"""Recipes: YAML with `extends`, overrides and grids, to validated values with the origin of each."""
