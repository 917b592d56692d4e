from __future__ import annotations

import random

import pytest

from slimline.report.plots import NARROW, Line, Mark, _box, _named, _overlap, axis, label, stairs


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_ascending_and_inside_for_any_range(log: bool) -> None:
    draw = random.Random(0)
    for _ in range(500):
        values = [10 ** draw.uniform(-6, 7) for _ in range(draw.randint(1, 4))]
        found = axis(values, "", str, log=log)
        places = [t.at for t in found.ticks]
        assert places == sorted(set(places)) and all(0 <= p <= 100 for p in places)
        assert 2 <= len(places) <= 8, (values, found)
        assert not any(found.beyond(v) for v in values)


def test_an_axis_without_a_span_still_has_one() -> None:
    assert axis([0.0, 0.0], "", str).place(0.0) == pytest.approx(100 / 3, abs=0.01)
    assert axis([5.0], "", str).place(5.0) == pytest.approx(50.0, abs=0.01)


def test_logarithms_are_for_positive_values_that_span_a_factor() -> None:
    assert axis([1.0, 100.0], "", str, log=True).log
    assert not axis([0.0, 100.0], "", str, log=True).log and not axis([10.0, 11.0], "", str, log=True).log


def test_the_staircase_goes_through_points_that_none_beats() -> None:
    draw = random.Random(0)
    corners = [(draw.uniform(0, 100), draw.uniform(0, 100)) for _ in range(60)]
    best = {a for a in corners if not any(b[0] <= a[0] and b[1] >= a[1] and a != b for b in corners)}  # from the top: larger is lower
    steps = stairs(corners)
    assert {(steps[0].x1, steps[0].y1)} | {(s.x2, s.y2) for s in steps[1::2]} == best
    assert stairs([]) == () and stairs([(1.0, 2.0)]) == ()


def test_labels_on_a_phone_never_cover_each_other() -> None:
    draw = random.Random(0)
    marks = [Mark(draw.uniform(0, 100), draw.uniform(0, 100), "reference", ("t",), "a reference") for _ in range(30)]
    boxes = [_box(m, m.side, NARROW) for m in label(marks) if m.side is not None and not m.wide_only]
    assert len(boxes) > 3
    for i, a in enumerate(boxes):
        assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[i + 1 :])


def test_no_label_covers_what_a_limit_is_called() -> None:
    mark, limit = Mark(40, 49, "reference", ("a",), "static_int8 alone 10"), Line(0, 50, 100, 50, "allowed")
    assert label([mark])[0].side == ("start", 11, 0)
    beside = label([mark], [limit])[0]
    assert beside.side is not None and not beside.wide_only and not _overlap(_box(beside, beside.side, NARROW), _named(limit, NARROW))
    assert beside.side != ("start", 11, 0)
