"""Studies, from the wire to the signed-off review."""
