"""Input sites: features that can go, images that can be smaller, and what stops either."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from slimline.core.edits import Keep, Prepend
from slimline.core.samples import Samples
from slimline.core.site import Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import apply_structure
from slimline.model.inputs import Halved, find_input_sites
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime


class Sensor(nn.Module):
    """``[N, T, F]`` to three scores."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(9, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class Normalised(nn.Module):
    """Two inputs by name, one of which is normalised by buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.randn(12))
        self.first, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, table: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.first(table - self.centre))) + shift
        return out


class Image(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.first, self.fixed = nn.Conv2d(3, 8, 3, padding=1), fixed
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 256 if fixed else 8, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(pixels)))
        out: torch.Tensor = self.head(y.flatten(1) if self.fixed else y.mean((2, 3)))
        return out


def only_site(model: nn.Module, samples: Samples) -> Site:
    (site,), _ = find_input_sites(model.eval(), samples)
    return site


CASES: dict[str, tuple[nn.Module, Samples, str, int, list[str]]] = {
    "sequential": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), Samples.of(torch.randn(3, 6)), "#input.0", 1, ["0.weight"]),
    "lstm": (Sensor(), Samples.of(torch.randn(3, 7, 9)), "#input.0", 2, ["lstm.weight_ih_l0"]),
    "conv1d": (nn.Sequential(nn.Conv1d(6, 8, 3), nn.Flatten(), nn.Linear(64, 2)), Samples.of(torch.randn(3, 6, 10)), "#input.0", 1, ["0.weight"]),
    "graph": (
        fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))),
        Samples.of(torch.randn(3, 2, 6)),
        "#input.0",
        2,
        ["1.weight"],
    ),
    "by name": (Normalised(), Samples.of({"shift": torch.randn(3, 1), "table": torch.randn(3, 12)}), "#input.1", 1, ["centre", "first.weight"]),
}


@pytest.mark.parametrize(("model", "samples", "name", "dim", "along"), CASES.values(), ids=CASES)
def test_features_are_found_with_what_reads_them(model: nn.Module, samples: Samples, name: str, dim: int, along: list[str]) -> None:
    site = only_site(model, samples)
    assert (site.id, site.members[0].parameter, site.members[0].dim) == (name, name, dim)
    assert [m.parameter for m in site.members[1:]] == along and site.features == samples.tensors[int(name[-1])].shape[dim]


@pytest.mark.parametrize(("model", "samples", "name", "dim", "along"), CASES.values(), ids=CASES)
def test_without_some_features_the_model_gives_what_it_gave_with_their_readers_zeroed(
    model: nn.Module, samples: Samples, name: str, dim: int, along: list[str]
) -> None:
    """In the runtime too: the artefact takes all features, and gathers."""
    site = only_site(model, samples)
    kept = (0, 2, 3, 5)
    new = apply_structure(model, [Keep(m, kept) for m in site.members])
    zeroed = copy.deepcopy(model)
    gone = tuple(c for c in range(site.features) if c not in kept)
    with torch.no_grad():
        for m in site.members[1:]:
            if m.parameter.rpartition(".")[2].startswith("weight"):
                zeroed.get_parameter(m.parameter).index_fill_(m.dim, torch.tensor(m.positions(gone)), 0.0)
        expected = zeroed(*samples.args, **samples.kwargs)
        torch.testing.assert_close(new(*samples.args, **samples.kwargs), expected)
    runtime = OnnxRuntime()
    (got,) = runtime.run(runtime.lower(Program.export(new, samples), samples), samples)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_an_image_model_that_pools_is_resizable_and_one_that_flattens_is_not() -> None:
    images = Samples.of(torch.randn(2, 3, 16, 16))
    site = only_site(Image(fixed=False), images)
    assert site.resizable and not site.members and site.features == 0
    sites, (refusal,) = find_input_sites(Image(fixed=True).eval(), images)
    assert not sites and refusal.where == "#input.0 resolution" and "cannot be multiplied" in refusal.reason


def test_outputs_as_large_as_the_image_are_no_matter_of_resolution() -> None:
    sites, (refusal,) = find_input_sites(nn.Conv2d(3, 2, 3, padding=1).eval(), Samples.of(torch.randn(2, 3, 16, 16)))
    assert not sites and "outputs change their shape" in refusal.reason


def test_integers_and_few_features_are_passed_over() -> None:
    assert find_input_sites(nn.Embedding(5, 4).eval(), Samples.of(torch.zeros(2, 6, dtype=torch.int64))) == ((), ())
    assert find_input_sites(nn.Linear(3, 4).eval(), Samples.of(torch.zeros(2, 3))) == ((), ())


@pytest.mark.parametrize("graph", [False, True])
def test_what_is_put_before_the_model_changes_neither_names_nor_signature_and_is_copied_with_it(graph: bool) -> None:
    model = Image(fixed=False).eval()
    model = fx.symbolic_trace(model) if graph else model
    new = copy.deepcopy(apply_structure(model, [Prepend("#input.0", Halved())]))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(new(pixels=x), model(nn.functional.avg_pool2d(x, 2)))
    assert list(new.state_dict()) == list(model.state_dict())
    assert list(Program.export(new, Samples.of({"pixels": x})).weights) == list(Program.export(model, Samples.of({"pixels": x})).weights)


def test_inputs_that_are_not_there_are_refused() -> None:
    with pytest.raises(UnsupportedSite, match="that is no input"):
        apply_structure(Image(fixed=False), [Keep(Member(parameter="#input.", dim=1, view=(1, 3, 1)), (0,))])
