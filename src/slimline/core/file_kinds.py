"""What the endings of file names say about what is inside."""

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
"""Pickles, which can run code when they are opened, and what can hold one."""
