"""What every method promises, as tests that anyone can run over theirs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree

from slimline.core.edits import Edit, Encode, Keep, Mix, Prepend, QuantizeValue, Replace, SetAttribute, SetParameter
from slimline.core.plan import Decision, Fingerprint, Method, Plan
from slimline.core.registry import registered
from slimline.core.samples import Samples
from slimline.core.site import INPUT, Site
from slimline.errors import SlimlineError, UnsupportedSite
from slimline.model.apply import apply_structure, named_tensors
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.sites import find_sites
from slimline.model.statistics import ProgramStatistics
from slimline.model.structure_statistics import StructureStatistics

LONGEST_LABEL = 80
STRUCTURE = Keep | Mix | Replace | SetAttribute | Prepend


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with everything that methods are given: sites, the exported program, statistics of both stages."""

    model: nn.Module
    samples: Samples
    sites: tuple[Site, ...]
    program: Program
    statistics: ProgramStatistics
    structure: StructureStatistics

    @classmethod
    def of(cls, model: nn.Module, samples: Samples) -> Bench:
        """Of any model in eval mode."""
        example = samples[:2].without_targets()
        program = Program.export(model, example)
        structure = StructureStatistics.collect(model, samples, None, seed=0, moments=True)
        return cls(model, samples, find_sites(model, example)[0], program, ProgramStatistics(program, samples), structure)

    def edits(self, method: Method, site: Site) -> tuple[Edit, ...] | None:
        """What ``method`` asks for at ``site``; ``None`` where it refuses."""
        given = (self.model, self.structure) if method.stage == "structure" else (self.program, self.statistics)
        try:
            return tuple(method.rewrite(given[0], site, given[1]))
        except UnsupportedSite:
            return None


class Residual(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Images(nn.Module):
    """A residual network of a few thousand weights: plain, strided, depthwise and pointwise convolutions, norms, relu6, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = Residual(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(F.relu(self.norm(self.stem(x))))
        x = F.relu6(self.depthwise(F.relu(self.down(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Words(nn.Module):
    """An embedding, an LSTM and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.hidden = nn.Linear(16, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.lstm(self.embedding(tokens))[0]
        out: torch.Tensor = self.head(F.relu(self.hidden(states.mean(1))))
        return out


@functools.cache
def default_benches() -> tuple[Bench, ...]:
    """Three small models that between them have a site of almost every kind; made once per process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, words = Images().eval(), Words().eval()
        pictures, tokens = torch.randn(16, 3, 8, 8), torch.randint(0, 40, (16, 8))
        table, rows = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(32, 12)
    return Bench.of(images, Samples.of(pictures)), Bench.of(words, Samples.of(tokens)), Bench.of(table, Samples.of(rows))


class MethodSuite:
    """Subclass it under pytest; it runs over every registered method, or over ``methods``. Or call a check with one class.

    Override ``benches`` where a method needs other models.

    Example:
        >>> from slimline.methods.keep import Keep
        >>> MethodSuite().test_it_says_what_it_is(Keep)
    """

    methods: ClassVar[Sequence[type[Method]] | None] = None

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """One test for each method."""
        if "method" in metafunc.fixturenames:
            found = tuple(registered("methods").values()) if cls.methods is None else cls.methods
            metafunc.parametrize("method", found, ids=[m.name for m in found])

    def benches(self) -> Sequence[Bench]:
        """The models that methods are tried on."""
        return default_benches()

    def offers(self, method: type[Method]) -> Iterator[tuple[Bench, Site, Method]]:
        """Every candidate at every site."""
        for bench in self.benches():
            for site in bench.sites:
                for candidate in method.candidates(site):
                    yield bench, site, candidate

    def test_it_says_what_it_is(self, method: type[Method]) -> None:
        assert method.name and method.summary and method.reference and method.__doc__
        assert method.kinds and method.stage in ("structure", "numerics")
        assert "\n" not in method.summary

    def test_it_is_offered_somewhere(self, method: type[Method]) -> None:
        assert next(self.offers(method), None) is not None, "no site of the benches gets a candidate: override benches"

    def test_candidates_are_its_own_and_differ(self, method: type[Method]) -> None:
        for bench in self.benches():
            for site in bench.sites:
                found = method.candidates(site)
                assert found == () or site.kind in method.kinds
                assert all(type(c) is method for c in found)
                assert len(set(found)) == len(found)
                assert found == method.candidates(site)

    def test_options_cannot_be_changed(self, method: type[Method]) -> None:
        _, _, candidate = next(self.offers(method))
        for field in type(candidate).model_fields:
            try:
                setattr(candidate, field, getattr(candidate, field))
            except pydantic.ValidationError:
                continue
            raise AssertionError(f"{method.name}.{field} can be set")

    def test_options_survive_json(self, method: type[Method]) -> None:
        for _, _, candidate in self.offers(method):
            assert method.model_validate_json(candidate.model_dump_json()) == candidate

    def test_a_plan_survives_json(self, method: type[Method]) -> None:
        if registered("methods").get(method.name) is not method:
            return  # a plan names its methods, so only a registered one comes back
        decisions = tuple(Decision(site=site.id, method=candidate) for _, site, candidate in self.offers(method))
        plan = Plan(model=Fingerprint(architecture="a", weights="w"), decisions=decisions)
        again = Plan.model_validate_json(plan.model_dump_json())
        assert again == plan and again.digest == plan.digest

    def test_labels_are_short_and_tell_candidates_apart(self, method: type[Method]) -> None:
        for bench in self.benches():
            for site in bench.sites:
                labels = [c.label for c in method.candidates(site)]
                assert len(set(labels)) == len(labels)
                assert all(x.startswith(method.name) and len(x) <= LONGEST_LABEL and "\n" not in x for x in labels)

    def test_rewrite_is_pure(self, method: type[Method]) -> None:
        """The model stays as it is, no random number is drawn, and the same question gets the same answer."""
        for bench, site, candidate in self.offers(method):
            before, state = digest_of_model(bench), torch.get_rng_state()
            first, second = bench.edits(candidate, site), bench.edits(candidate, site)
            assert digest_of_model(bench) == before, f"{candidate.label} at {site.id} changed the model"
            assert torch.equal(torch.get_rng_state(), state), f"{candidate.label} at {site.id} drew random numbers"
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert digest(first) == digest(second), f"{candidate.label} at {site.id} gave different edits"

    def test_edits_are_of_its_stage_and_name_what_is_there(self, method: type[Method]) -> None:
        for bench, site, candidate in self.offers(method):
            for edit in bench.edits(candidate, site) or ():
                assert isinstance(edit, STRUCTURE) == (method.stage == "structure")
                assert target_of(edit) in names_in(bench, edit), f"{candidate.label} at {site.id}: {target_of(edit)} is not in the model"

    def test_edits_can_be_carried_out(self, method: type[Method]) -> None:
        """The changed model runs and gives outputs of the same shape; an integer weight decodes to what was asked for."""
        for bench, site, candidate in self.offers(method):
            edits = bench.edits(candidate, site)
            if edits:
                shapes = [_shapes(bench.model(*bench.samples.args, **bench.samples.kwargs)), _shapes(carry_out(bench, method, edits))]
                assert shapes[0] == shapes[1], f"{candidate.label} at {site.id}"

    def test_most_offers_are_legal(self, method: type[Method]) -> None:
        """Refusing is for what a site cannot show; a method that is refused everywhere offers in vain."""
        assert any(bench.edits(candidate, site) is not None for bench, site, candidate in self.offers(method))

    def test_a_site_that_is_not_there_raises_nothing_foreign(self, method: type[Method]) -> None:
        bench, site, candidate = next(self.offers(method))
        ghost = site.model_copy(update={"id": "nowhere.weight" if site.kind == "weight" else f"nowhere#{site.kind}", "members": ()})
        given = (bench.model, bench.structure) if method.stage == "structure" else (bench.program, bench.statistics)
        with contextlib.suppress(SlimlineError):
            candidate.rewrite(given[0], ghost, given[1])


@torch.no_grad()
def carry_out(bench: Bench, method: type[Method], edits: Sequence[Edit]) -> Any:
    """Outputs of the bench's model after ``edits``."""
    if method.stage == "structure":
        changed = apply_structure(bench.model, [e for e in edits if isinstance(e, STRUCTURE)])
        return changed(*bench.samples.args, **bench.samples.kwargs)
    return freeze(quantize(bench.program, [e for e in edits if isinstance(e, Encode | QuantizeValue | SetParameter)]))(bench.samples)


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def target_of(edit: Edit) -> str:
    """What an edit changes, by name."""
    if isinstance(edit, Keep | Mix):
        return edit.member.parameter
    if isinstance(edit, Replace | SetAttribute):
        return edit.module
    return edit.value if isinstance(edit, QuantizeValue | Prepend) else edit.parameter


def names_in(bench: Bench, edit: Edit) -> set[str]:
    """Everything that an edit of this kind may name."""
    if isinstance(edit, Keep | Mix | Prepend):
        inputs = {f"{INPUT}{i}" for i, _ in enumerate(bench.samples.tensors)}
        return inputs if isinstance(edit, Prepend) else inputs | {name for name, _ in named_tensors(bench.model)}
    if isinstance(edit, Replace | SetAttribute):
        return {name for name, _ in bench.model.named_modules()}
    return set(bench.program.names.values()) if isinstance(edit, QuantizeValue) else set(bench.program.parameters())


def digest_of_model(bench: Bench) -> str:
    """Of the module and the program: structure, parameters and buffers."""
    return digest((repr(bench.model), bench.model.state_dict(), bench.program.module.code, bench.program.module.state_dict()))


def digest(thing: object) -> str:
    """sha256 of edits, tensors, modules and what holds them, by content."""
    found = hashlib.sha256()
    for piece in _pieces(thing):
        found.update(len(piece).to_bytes(8, "little") + piece)
    return found.hexdigest()


def _pieces(thing: object) -> Iterator[bytes]:
    if isinstance(thing, torch.Tensor):
        flat = thing.detach().cpu().contiguous()
        yield f"{flat.dtype} {tuple(flat.shape)}".encode()
        yield flat.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, nn.Module):
        yield repr(thing).encode()
        yield from _pieces(thing.state_dict())
    elif isinstance(thing, pydantic.BaseModel):
        yield thing.model_dump_json().encode()
    elif isinstance(thing, Mapping):
        for key in sorted(thing):
            yield str(key).encode()
            yield from _pieces(thing[key])
    elif isinstance(thing, tuple | list):
        for item in thing:
            yield from _pieces(item)
    elif dataclasses.is_dataclass(thing):
        yield type(thing).__name__.encode()
        for field in dataclasses.fields(thing):
            yield from _pieces(getattr(thing, field.name))
    else:
        yield repr(thing).encode()
