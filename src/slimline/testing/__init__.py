"""What every plug-in promises, as tests: subclass a suite in your own, name what it is about, and run pytest."""

from __future__ import annotations

from slimline.testing.format_suite import FormatSuite
from slimline.testing.method_suite import MethodSuite
from slimline.testing.target_suite import TargetSuite

__all__ = ["FormatSuite", "MethodSuite", "TargetSuite"]
