"""Synthetic departments."""
