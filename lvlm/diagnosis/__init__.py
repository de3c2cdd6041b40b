"""The doctor: whether the decoder of a run reads its codes, and what to try."""
