"""The doctor: whether a run's latent lives and is read, and what to try."""
