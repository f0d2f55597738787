"""Scores and heatmaps from a package."""
