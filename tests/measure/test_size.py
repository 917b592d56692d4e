from __future__ import annotations

import zstandard

from slimline.measure.size import download_bytes


def test_download_is_what_zstd_makes_of_the_file() -> None:
    payload = bytes(range(256)) * 50
    size, codec = download_bytes(payload)
    assert size == len(zstandard.ZstdCompressor(level=19).compress(payload)) < len(payload)
    assert codec == "zstd -19"
