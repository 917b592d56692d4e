"""What is measured in the time that there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.job.prepare import MEASURED, OPTIONS_SHARE, Speed, _fewer, _kind, _plain
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.unstructured import Unstructured
from slimline.methods.weight_only import WeightOnly
from slimline.search.schedule import FEWEST_SAMPLES, LEAST_SAMPLES

LAYERS = [Site(id=f"{i}.weight", kind="weight", op="linear", shape=(256, 256)) for i in range(10)]
WIDE = Site(id="0#channels", kind="channels", op="channels", shape=(256,))
SITES = (*LAYERS, WIDE)
OFFERED: dict[str, list[Method]] = {
    s.id: [o for m in (DynamicInt8, StaticInt8, WeightOnly, ChannelPrune) if s.kind in m.kinds for o in m.candidates(s) if not o.gains] for s in SITES
}
FREE = 1e-12


def fewer(seconds: float, forward: float, rounding: float) -> tuple[dict[str, list[Method]], int, list[str]]:
    notes: list[str] = []
    job = cast(Any, SimpleNamespace(clock=SimpleNamespace(seconds=seconds), note=notes.append))
    encoding = {_kind(LAYERS[0], m): rounding for m in OFFERED["0.weight"] if getattr(m, "rounding", "") == "second_order"}
    found, samples = _fewer(job, SITES, OFFERED, Speed(forward, encoding))
    return found, samples, notes


def count(offered: dict[str, list[Method]]) -> int:
    return sum(map(len, offered.values()))


def test_everything_is_measured_where_there_is_time() -> None:
    assert fewer(600, 1e-4, 1e-12) == (OFFERED, LEAST_SAMPLES, [])


def test_slow_forward_passes_leave_half_of_the_options_and_every_second_width() -> None:
    all_of_them = count(OFFERED) * MEASURED * LEAST_SAMPLES
    found, samples, notes = fewer(600, 0.7 * OPTIONS_SHARE * 600 / all_of_them * 2, FREE)
    assert samples == LEAST_SAMPLES and len(notes) == 1
    assert found[WIDE.id] == OFFERED[WIDE.id][1::2]
    labels = [m.label for m in found["0.weight"]]
    assert "static_int8(rounding=second_order)" in labels and "static_int8(range=minmax)" not in labels and "weight_only(bits=4, group=64)" not in labels


def test_slow_rounding_counts_too() -> None:
    """However fast the model runs: 10 layers of 256 x 256 in 8, 4 and 2 bits."""
    rounding = 10 * 3 * 256**3
    assert fewer(600, FREE, 0.9 * OPTIONS_SHARE * 600 / rounding)[0] == OFFERED
    found, _, notes = fewer(600, FREE, 1.1 * OPTIONS_SHARE * 600 / rounding)
    assert count(found) < 0.6 * count(OFFERED) and notes
    bits = {getattr(m, "bits", 0) for m in found["0.weight"] if getattr(m, "rounding", "") == "second_order"}
    assert bits == {4}, "2 bits go, and 8 are rounded to the nearest"


def test_where_even_the_fewest_take_too_long_they_are_measured_on_fewer_samples() -> None:
    found, samples, _ = fewer(10, 0.1, FREE)
    assert samples == FEWEST_SAMPLES
    assert [m.label for m in found["0.weight"]] == [
        "dynamic_int8",
        "dynamic_int8(bits=4, rounding=second_order)",
        "static_int8",
        "static_int8(bits=4, rounding=second_order)",
        "weight_only",
        "weight_only(bits=4, rounding=second_order)",
    ]
    assert 0 < len(found[WIDE.id]) < 0.4 * len(OFFERED[WIDE.id])
    found, _, _ = fewer(10, 0.1, 1e-6)
    assert [m.label for m in found["0.weight"]] == ["dynamic_int8", "static_int8", "weight_only"], "rounding them would take 168 s"


def test_masks_that_take_longest_go_first_where_there_is_no_time_for_the_fewest() -> None:
    offered: dict[str, list[Method]] = {s.id: [*Unstructured.candidates(s), *OFFERED[s.id]] for s in LAYERS}
    notes: list[str] = []
    job = cast(Any, SimpleNamespace(clock=SimpleNamespace(seconds=600), note=notes.append))
    whole = OPTIONS_SHARE * 600 / (len(LAYERS) * 256**3)  # of the time that options may take
    for share, stay in ((0.1, True), (1.0, False)):
        found, _ = _fewer(job, tuple(LAYERS), offered, Speed(FREE, {_kind(LAYERS[0], m): share * whole for m in Unstructured.candidates(LAYERS[0])}))
        names = {m.name for m in found["0.weight"]}
        assert ("unstructured" in names) == stay and {"static_int8", "dynamic_int8", "weight_only"} <= names
    assert len(notes) == 1


def test_a_candidate_is_timed_with_plain_numerics() -> None:
    """However the methods are ordered: masks and second-order rounding take much longer than everything else that a candidate does."""
    site = LAYERS[0]
    everything: list[Method] = [*Unstructured.candidates(site), *reversed(StaticInt8.candidates(site)), *WeightOnly.candidates(site)]
    (taken,) = _plain(everything)
    assert isinstance(taken, StaticInt8) and taken.rounding == "nearest"
    assert _plain(everything[:1]) == everything[:1] and _plain([]) == []
