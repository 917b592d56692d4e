"""Every registered target keeps what it claims."""

from __future__ import annotations

from slimline.testing.target_suite import TargetSuite


class TestTargets(TargetSuite):
    pass
