"""Options at an input: what they lose is measured on the repaired model, and what they save is counted in every layer that they reach."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.plan import Fingerprint
from slimline.core.samples import Samples
from slimline.methods.feature_select import FeatureSelect
from slimline.methods.resolution import Resolution
from slimline.methods.sequence_length import SequenceLength
from slimline.model.program import Program
from slimline.model.sites import find_sites
from slimline.numerics.divergence import mean_divergence
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import LEAST_COMMON, Option, Place, Space, Timing, layers_of
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return scores


class Mean(nn.Module):
    """Over the positions of ``[N, T, C]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def space_of(model: nn.Module, samples: Samples, method: type[FeatureSelect | Resolution | SequenceLength]) -> tuple[Space, Workshop]:
    """The measured options of one method at the input, and nothing else."""
    sites, _ = find_sites(model, samples)
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime())
    site = next(s for s in sites if s.kind == "input")
    place, refused = Sensitivity(workshop, samples).place(site, method.candidates(site), lambda s: Option("keep", channels=s.features or None))
    assert not refused
    weights = workshop.program.weights
    timing = Timing({"float": dict.fromkeys(weights, 1.0)}, {}, 0.0)
    return Space(Fingerprint(architecture="a", weights="w"), (place,), layers_of(weights, (place,)), timing, 0, 0), workshop


@pytest.fixture(scope="module")
def smaller() -> tuple[Space, Workshop]:
    torch.manual_seed(0)
    return space_of(Pooled().eval(), Samples.of(torch.randn(32, 3, 32, 32)), Resolution)


def test_estimated_multiply_adds_of_smaller_images_are_those_of_the_built_model(smaller: tuple[Space, Workshop]) -> None:
    space, workshop = smaller
    assert [o.label for o in space.places[0].options[1:]] == ["resolution(height=24, width=24)", "resolution(height=16, width=16)"]
    for taken in range(len(space.places[0].options)):
        built = workshop.build(space.plan((taken,)))
        assert space.costs((taken,))["macs"] == pytest.approx(built.program.macs())


def test_smaller_images_cost_less_time_and_memory_and_as_many_bytes(smaller: tuple[Space, Workshop]) -> None:
    space, _ = smaller
    whole, half = space.costs((0,)), space.costs((2,))
    assert half["size"] == whole["size"]
    assert half["latency"] < 0.7 * whole["latency"] and half["memory"] < 0.6 * whole["memory"]
    assert space.places[0].options[0].loss == 0.0 < space.places[0].options[2].loss
    assert space.least("macs") == half["macs"]


def test_fewer_features_narrow_the_first_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 12)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    space, workshop = space_of(model, Samples.of(torch.cat([x[:, :6], x[:, :6] @ torch.randn(6, 6)], 1)), FeatureSelect)
    assert [o.channels for o in space.places[0].options] == [12, 9, 6, 3]
    assert space.costs((2,))["macs"] == 6 * 16 + 16 * 3 == workshop.build(space.plan((2,))).program.macs()
    assert space.places[0].options[2].loss < 1e-2 * space.places[0].options[3].loss  # six follow from the other six


def test_shorter_texts_cost_less_in_every_layer_and_nothing_is_repaired() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 16), nn.ReLU(), Mean(), nn.Linear(16, 4)).eval()
    ids = torch.randint(0, 30, (32, 16)).where(torch.arange(16) < 10, 0)
    space, workshop = space_of(model, Samples.of(ids), SequenceLength)
    assert [o.label for o in space.places[0].options[1:]] == [f"sequence_length(length={n})" for n in (14, 12, 10, 8, 6, 4)]
    for taken in range(len(space.places[0].options)):
        module = workshop.structure(space.plan((taken,)))
        assert space.costs((taken,))["macs"] == workshop.build(space.plan((taken,))).program.macs()
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), model.parameters(), strict=True))
    losses = [o.loss for o in space.places[0].options]
    assert losses == sorted(losses) and losses[0] == 0.0 < losses[-1]


def test_lengths_are_measured_on_more_texts_than_the_rest() -> None:
    """Two short texts do not show what a cut loses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8), Mean(), nn.Linear(8, 4)).eval()
    longer = torch.randint(1, 30, (32, 16))
    short = longer[:2] * (torch.arange(16) < 4)
    sites, _ = find_sites(model, Samples.of(short))
    workshop = Workshop(model, Samples.of(short), Samples.of(short), sites, OnnxRuntime())
    site = next(s for s in sites if s.kind == "input")
    alone, beside = (
        [o.loss for o in Sensitivity(workshop, Samples.of(short), texts=texts).rebuilt(site, [SequenceLength(length=6)]) if isinstance(o, Option)]
        for texts in (None, Samples.of(longer))
    )
    with torch.no_grad():
        expected = float(mean_divergence([model(longer[:, :6])], [model(longer)], classes=True))
    assert beside == pytest.approx([expected]) and alone != pytest.approx(beside, rel=0.1)


class Last(nn.Module):
    """The last time step of ``[N, T, C]``, without the states."""

    def forward(self, given: tuple[torch.Tensor, object]) -> torch.Tensor:
        return given[0][:, -1]


def test_shorter_texts_take_less_time_in_recurrent_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8), nn.LSTM(8, 16, batch_first=True), Last(), nn.Linear(16, 4)).eval()
    space, _ = space_of(model, Samples.of(torch.randint(1, 30, (16, 16))), SequenceLength)
    (whole, *shorter) = (space.costs((k,)) for k in range(len(space.places[0].options)))
    assert shorter and all(s["macs"] < whole["macs"] and s["latency"] < whole["latency"] for s in shorter)


def test_options_whose_outputs_are_no_numbers_are_refused() -> None:
    """Cut to nothing but padding, a mean over the words that are there divides by zero."""

    class OverWords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(30, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            there = (ids > 0).float().unsqueeze(2)
            mean: torch.Tensor = (self.words(ids) * there).sum(1) / there.sum(1)
            return mean

    model, full = OverWords().eval(), torch.randint(1, 30, (8, 16))
    late = full * (torch.arange(16) >= 10)  # padded at the start, which two full rows do not show
    sites, _ = find_sites(model, Samples.of(full[:2]))
    workshop = Workshop(model, Samples.of(full[:2]), Samples.of(late), sites, OnnxRuntime())
    site = next(s for s in sites if s.kind == "input")
    place, refused = Sensitivity(workshop, Samples.of(late)).place(site, SequenceLength.candidates(site), lambda s: Option("keep"))
    assert "its outputs are not finite" in {r.reason for r in refused}
    assert all(o.loss < float("inf") for o in place.options)


def test_a_choice_comes_back_from_its_plan_and_small_inputs_keep_their_layers(smaller: tuple[Space, Workshop]) -> None:
    space, workshop = smaller
    assert space.choice(space.plan((1,))) == (1,)
    program = workshop.build(space.plan((1,))).program
    assert isinstance(program, Program) and list(program.weights) == list(workshop.program.weights)


def test_repair_makes_smaller_images_lose_less(smaller: tuple[Space, Workshop]) -> None:
    """The head, which sees as many values as before, is fitted again."""
    from slimline.model.apply import apply_structure

    space, workshop = smaller
    plan = space.plan((2,))
    assert workshop.calibration is not None
    (x,) = workshop.calibration.args
    with torch.no_grad():
        bare = apply_structure(workshop.model, workshop.structure_edits(plan.decisions))(x)
        fitted, wanted = workshop.structure(plan)(x), workshop.model(x)
    assert float((fitted - wanted).square().mean()) < 0.9 * float((bare - wanted).square().mean())


def test_places_are_of_a_kind_that_corrections_know(smaller: tuple[Space, Workshop]) -> None:
    space, _ = smaller
    trials = [((k,), {}, 2 * space.places[0].options[k].loss) for k in (1, 2, 2)]
    assert space.fitted(trials).losses["input"] == pytest.approx(2.0, rel=0.1)
    assert isinstance(space.places[0], Place)


def test_the_first_trials_correct_by_the_common_ratio_and_a_lucky_one_by_little(smaller: tuple[Space, Workshop]) -> None:
    space, _ = smaller
    loss = space.places[0].options[1].loss
    assert loss > 0
    for measured, factor in ((150.0, 150.0), (0.001, LEAST_COMMON)):
        assert space.fitted([((1,), {}, measured * loss)]).losses["input"] == pytest.approx(factor)
