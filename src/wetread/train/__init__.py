"""PyTorch lives here and in no stage that serves."""
