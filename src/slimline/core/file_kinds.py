"""What the names of models say about what is inside: the endings of files, and what stands before a colon."""

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Pickles, which can run code when they are opened."""

ZOOS = ("timm", "torchvision")
"""Packages whose models are named, as in ``timm:NAME``: no files."""
