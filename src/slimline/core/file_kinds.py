"""What the endings of file names say about what is inside."""

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Pickles, which can run code when they are opened."""
