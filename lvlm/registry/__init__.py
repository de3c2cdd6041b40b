"""The registry: which plugins are installed, and the kinds that they supply."""
