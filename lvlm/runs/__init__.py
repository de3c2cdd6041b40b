"""Run folders: what a run keeps, its checkpoints, and how a model is loaded from it."""
