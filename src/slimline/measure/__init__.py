"""What is measured of an artefact: quality, agreement, size, the certificate.

``slimline.measure(...)`` is a public function, and this package bears the same name: importing any part
of it puts the package where the function was. So the package can be called, and calling it calls the function.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("slimline.job").measure(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
