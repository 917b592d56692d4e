"""What enters and leaves a .tflite file: NumPy alone, since the runners read it by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def channels_last(model: Any) -> frozenset[int]:
    """Places of the inputs whose channels lie last, as the metadata of a ``schema.Model`` says."""
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    return frozenset(int(i) for e in entries if e.Name() == b"channels_last" for i in model.Buffers(e.Buffer()).DataAsNumpy())


def as_stored(array: Array, last: bool, detail: Mapping[str, Any]) -> Array:
    """An input as the file takes it: channels moved, numbers made integers."""
    if last:
        array = np.moveaxis(array, 1, -1)
        array = array[:, None] if array.ndim == 3 else array
    scale, zero = detail["quantization"]
    if scale and detail["dtype"] == np.int8:
        array = np.clip(np.round(array / np.float32(scale)) + zero, -128, 127)
    return np.ascontiguousarray(array.astype(detail["dtype"], copy=False))


def as_numbers(array: Array, detail: Mapping[str, Any]) -> Array:
    """An output as numbers."""
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale) if scale and array.dtype == np.int8 else array
