"""Numbers about scores and labels, in NumPy only."""
