"""The model: `latent_lm.py` has the forward pass, to be read first; noise by row; precision of weights."""
