from __future__ import annotations

import pytest

from slimline.core.extras import require
from slimline.errors import UsageError


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UsageError, match=r"slimline bom needs the package no_such_thing.*pip install 'slimline\[bom\]'"):
        require("no_such_thing", "bom", "slimline bom")
