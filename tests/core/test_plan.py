from __future__ import annotations

from pathlib import Path

import pytest

from slimline.core.plan import Fingerprint, Plan
from slimline.errors import UsageError


def test_a_plan_is_read_from_its_file_and_from_its_content(tmp_path: Path) -> None:
    plan = Plan(model=Fingerprint(architecture="a", weights="w"))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    assert Plan.read(tmp_path / "plan.json") == plan == Plan.read(plan.model_dump(mode="json"))


@pytest.mark.parametrize(("text", "says"), [(None, "cannot be read: No such file"), ("no json", "is not a plan: "), ("{}", "Field required at model")])
def test_what_is_no_plan_is_named_with_its_remedy(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        Plan.read(file)
    assert str(file) in str(caught.value) and "plan.json of an earlier run" in str(caught.value)
