"""What is measured in the time that there is."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from slimline.core.plan import Method
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.job import probing
from slimline.job.offers import OPTIONS_SHARE
from slimline.job.offers import fewer as fewer_of
from slimline.job.option_database import OptionDatabase
from slimline.job.probing import Speed, kind_of, limit_evaluation, plain
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.unstructured import Unstructured
from slimline.methods.weight_only import WeightOnly
from slimline.model.sites import find_sites
from slimline.search.schedule import DOWNSTREAM, FEWEST_SAMPLES, LEAST_SAMPLES
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime

LAYERS = [Site(id=f"{i}.weight", kind="weight", op="linear", shape=(256, 256)) for i in range(10)]
WIDE = Site(id="0#channels", kind="channels", op="channels", shape=(256,))
SITES = (*LAYERS, WIDE)
OFFERED: dict[str, list[Method]] = {
    s.id: [o for m in (DynamicInt8, StaticInt8, WeightOnly, ChannelPrune) if s.kind in m.kinds for o in m.candidates(s) if not o.gains] for s in SITES
}
FREE = 1e-12


class SlowRuntime:
    """A runtime that takes so many seconds for each sample, and 0.05 to open a file."""

    name = "slow"

    def __init__(self, each: float) -> None:
        self.each = each

    def run(self, artifact: object, samples: Samples, threads: int) -> None:
        time.sleep(0.05 + self.each * len(samples))


def evaluated(each: float, seconds: float, kept: dict[str, float] | None = None) -> tuple[list[int], list[str], list[str], list[dict[str, float]]]:
    """Which of 2,000 samples are left to choose by, what is said in the report and at the start, and what is in the journal."""
    notes: list[str] = []
    said: list[str] = []
    events: list[dict[str, float]] = []
    samples = Samples.of(torch.arange(2000))
    job = SimpleNamespace(
        evaluation=samples,
        target=SlowRuntime(each),
        clock=SimpleNamespace(seconds=seconds, elapsed=0.0),
        request=SimpleNamespace(seed=0),
        journal=SimpleNamespace(last=lambda kind: kept, append=lambda kind, data, elapsed: events.append(data)),
        source=SimpleNamespace(data=lambda split: samples),
        note=notes.append,
        progress=SimpleNamespace(note=said.append),
    )
    limit_evaluation(cast(Any, job), cast(Any, None))
    (left,) = job.evaluation.args
    return left.tolist(), notes, said, events


def test_a_slow_runtime_chooses_by_fewer_samples_and_the_certificate_is_announced() -> None:
    left, notes, said, events = evaluated(0.02, 200)
    assert len(left) == 500 and left == sorted(set(left)) and left != list(range(len(left)))
    assert "of 2,000 samples: slow takes" in notes[0] and "certifying on 2,000 holdout samples will take about" in said[0]
    assert evaluated(1.0, 200, kept=events[0])[0] == left, "a resumed run takes the same, however fast the machine is then"


def test_a_fast_runtime_chooses_by_all_of_them() -> None:
    left, notes, said, _ = evaluated(1e-4, 400)
    assert left == list(range(2000)) and not notes and not said


def fewer(seconds: float, forward: float, rounding: float) -> tuple[dict[str, list[Method]], int, list[str]]:
    notes: list[str] = []
    job = cast(Any, SimpleNamespace(clock=SimpleNamespace(seconds=seconds), note=notes.append))
    encoding = {kind_of(LAYERS[0], m): rounding for m in OFFERED["0.weight"] if getattr(m, "rounding", "") == "second_order"}
    found, samples = fewer_of(job, SITES, OFFERED, Speed(forward, encoding))
    return found, samples, notes


def count(offered: dict[str, list[Method]]) -> int:
    return sum(map(len, offered.values()))


def test_everything_is_measured_where_there_is_time() -> None:
    assert fewer(600, 1e-4, 1e-12) == (OFFERED, LEAST_SAMPLES, [])


def test_slow_forward_passes_leave_half_of_the_options_and_every_second_width() -> None:
    all_of_them = count(OFFERED) * DOWNSTREAM * LEAST_SAMPLES
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
    assert bits == {8, 4}, "2 bits go"
    found, _, _ = fewer(600, FREE, 2.5 * OPTIONS_SHARE * 600 / rounding)
    assert [m.label for m in found["0.weight"] if getattr(m, "bits", 0) == 8] == ["dynamic_int8", "static_int8", "weight_only"], "8 are rounded to the nearest"


def test_where_even_the_fewest_take_too_long_they_are_measured_on_fewer_samples() -> None:
    found, samples, _ = fewer(10, 0.1, FREE)
    assert samples == FEWEST_SAMPLES
    assert [m.label for m in found["0.weight"]] == [
        "dynamic_int8(rounding=second_order)",
        "dynamic_int8(bits=4, rounding=second_order)",
        "static_int8(rounding=second_order)",
        "static_int8(bits=4, rounding=second_order)",
        "weight_only",
        "weight_only(bits=4, rounding=second_order)",
    ]
    assert found[WIDE.id] == OFFERED[WIDE.id][1::2][:2], "of every second width the widest: little time is for what loses least"
    found, _, _ = fewer(10, 0.1, 1e-6)
    assert [m.label for m in found["0.weight"]] == ["dynamic_int8", "static_int8", "weight_only"], "rounding them would take 168 s"


def test_masks_that_take_longest_go_first_where_there_is_no_time_for_the_fewest() -> None:
    offered: dict[str, list[Method]] = {s.id: [*Unstructured.candidates(s), *OFFERED[s.id]] for s in LAYERS}
    notes: list[str] = []
    job = cast(Any, SimpleNamespace(clock=SimpleNamespace(seconds=600), note=notes.append))
    whole = OPTIONS_SHARE * 600 / (len(LAYERS) * 256**3)  # of the time that options may take
    for share, stay in ((0.1, True), (1.0, False)):
        found, _ = fewer_of(job, tuple(LAYERS), offered, Speed(FREE, {kind_of(LAYERS[0], m): share * whole for m in Unstructured.candidates(LAYERS[0])}))
        names = {m.name for m in found["0.weight"]}
        assert ("unstructured" in names) == stay and {"static_int8", "dynamic_int8", "weight_only"} <= names
    assert len(notes) == 1


def test_what_encoding_takes_is_probed_at_a_layer_of_mean_work_and_without_gathering_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small layer, gathering counted with it, EfficientNet-Lite0's static_int8 was thought to take hours and left out."""
    shapes = [(64, 1, 3, 3), (64, 1, 3, 3), (64, 1, 3, 3), (96, 16, 1, 1), (256, 128, 1, 1)]
    layers = tuple(Site(id=f"{i}.weight", kind="weight", op="conv2d", shape=shape) for i, shape in enumerate(shapes))
    clock, made, gathered = 0.0, [], []

    def moment(parameter: str) -> None:
        nonlocal clock
        gathered.append(parameter)
        clock += 1.0

    def numeric_edits(program: object, parameter: str, method: Method, statistics: object) -> None:
        nonlocal clock
        made.append(parameter)
        clock += 3.0 if parameter not in gathered else 0.01

    workshop = SimpleNamespace(sites=layers, statistics=SimpleNamespace(moment=moment), program=None, numeric_edits=numeric_edits)
    monkeypatch.setattr(probing, "time", SimpleNamespace(perf_counter=lambda: clock))
    offered = {s.id: [*StaticInt8.candidates(s)][:4] for s in layers}
    encoding, gathering = probing._encoding_seconds(cast(Any, workshop), offered)
    assert set(made) == {"3.weight"}, "its work is nearest to the mean; the one in the middle is a depthwise layer"
    assert gathering == {"conv2d": pytest.approx(1.0), "depthwise conv2d": pytest.approx(1.0)} and len(gathered) == 2
    numbers, squares = (sum(s.shape[0] * (s.shape[1] * s.shape[2] * s.shape[3]) ** power for s in layers) for power in (1, 2))
    expected = len(layers) * 1.0 + 0.01 * (numbers / (96 * 16) + squares / (96 * 16**2))
    assert sum(Speed(FREE, encoding, gathering).seconds(s, offered[s.id]) for s in layers) == pytest.approx(expected), (
        "rounding to the nearest, and by second order"
    )


def test_a_candidate_is_timed_with_plain_numerics() -> None:
    """However the methods are ordered: masks and second-order rounding take much longer than everything else that a candidate does."""
    site = LAYERS[0]
    everything: list[Method] = [*Unstructured.candidates(site), *reversed(StaticInt8.candidates(site)), *WeightOnly.candidates(site)]
    (taken,) = plain(everything)
    assert isinstance(taken, StaticInt8) and taken.rounding == "nearest"
    assert plain(everything[:1]) == everything[:1] and plain([]) == []


def test_the_option_database_measures_on_samples_that_no_rounding_saw() -> None:
    model, samples = nn.Sequential(nn.Linear(8, 4)).eval(), Samples.of(torch.randn(160, 8))
    workshop = Workshop(model, samples[:2], samples, find_sites(model, samples[:2])[0], OnnxRuntime())
    job = cast(Any, SimpleNamespace(example=samples[:2], texts=None, request=SimpleNamespace(shared=None)))
    assert workshop.unrounded is not None
    assert torch.equal(OptionDatabase(job, workshop, 16, False)._sensitivity.samples.tensors[0], workshop.unrounded[:16].tensors[0])
    assert torch.equal(workshop.unrounded.tensors[0], samples[120:].tensors[0])
