"""Texts and codes: prompts, decoding, generation, encoding, interpolation."""
