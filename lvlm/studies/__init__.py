"""Studies: arms and seeds, one run after the other, and their report."""
