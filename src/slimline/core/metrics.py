"""The names of the built-in metrics, which ``measure/quality.py`` computes: known without importing torch."""

SHARES = ("top1", "top5", "precision", "recall", "f1", "auroc")  # always in [0, 1]
BUILT_IN = (*SHARES, "neg_mse", "cosine")
