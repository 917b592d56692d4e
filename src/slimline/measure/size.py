"""Bytes to download."""

from __future__ import annotations

import zstandard

LEVEL = 19


def download_bytes(payload: bytes) -> tuple[int, str]:
    """Compressed size of a file's content, and the codec that gave it."""
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(payload)), f"zstd -{LEVEL}"
