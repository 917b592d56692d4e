"""sequence_length: what is offered, where is cut, and that the runtime does the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import slimline
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.sequence_length import SequenceLength
from slimline.model.apply import apply_structure
from slimline.model.entry import Crop
from slimline.model.inputs import find_input_sites
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime

LENGTH = 32


class Sentences(nn.Module):
    """A mean over the words that are there, as sentence encoders have it; ``fixed``: a head that reads every position; ``placed``: words are told where they stand."""

    def __init__(self, fixed: bool = False, placed: bool = True) -> None:
        super().__init__()
        self.words, self.places, self.layer = nn.Embedding(50, 16), nn.Embedding(LENGTH, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16 * LENGTH if fixed else 16, 4)
        self.fixed, self.placed = fixed, placed

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = self.words(ids) + self.places.weight[: ids.shape[1]] if self.placed else self.words(ids)
        seen = torch.relu(self.layer(words)) * mask.unsqueeze(2).float()
        scores: torch.Tensor = self.head(seen.flatten(1) if self.fixed else seen.sum(1) / mask.sum(1, keepdim=True).float())
        return scores


def sentences(lengths: list[int], start: bool = False) -> Samples:
    """Word ids from 1 on, padded with zeros at the end or at the start, and the mask of those that are there."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(lengths), LENGTH, dtype=torch.int64)
    for row, n in zip(ids, lengths, strict=True):
        row[LENGTH - n if start else 0 : LENGTH if start else n] = torch.randint(1, 50, (n,), generator=draw)
    return Samples.of({"ids": ids, "mask": (ids > 0).long()})


def tokens(length: int, **more: object) -> Site:
    return Site(id="#input.0", kind="input", op="input", shape=(1, length), tokens=("#input.0", "#input.1"), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "offered"), [(512, [448, 384, 320, 256, 192, 128]), (64, [56, 48, 40, 32, 24, 16]), (20, [18, 16, 12, 10, 8, 4]), (8, [7, 6, 5, 4, 3, 2])]
)
def test_lengths_from_seven_eighths_to_a_quarter_are_offered(length: int, offered: list[int]) -> None:
    assert [m.length for m in SequenceLength.candidates(tokens(length)) if isinstance(m, SequenceLength)] == offered


@pytest.mark.parametrize("start", [False, True], ids=["padded at the end", "padded at the start"])
def test_ids_and_mask_are_one_site_and_the_padded_side_is_cut(start: bool) -> None:
    (site,), refused = find_input_sites(Sentences(placed=not start).eval(), sentences([9, 16], start))
    assert not refused and site.tokens == ("#input.0", "#input.1") and site.shape == (1, LENGTH) and site.features == 0
    assert {m.side for m in SequenceLength.candidates(site) if isinstance(m, SequenceLength)} == {"start" if start else "end"}


def test_the_ids_tell_which_side_is_padded_and_not_the_mask_before_them() -> None:
    class MaskFirst(Sentences):
        def forward(self, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids, mask)

    given = sentences([20, 25]).kwargs
    (site,), _ = find_input_sites(MaskFirst().eval(), Samples.of({"mask": given["mask"], "ids": given["ids"]}))
    assert site.id == "#input.1" and set(site.tokens) == {"#input.0", "#input.1"} and site.padded == "end"


def test_what_is_no_longer_than_the_cut_gives_what_it_gave_and_the_runtime_says_the_same() -> None:
    model, samples = Sentences().eval(), sentences([3, 9, 16, 12, 30])
    (site,), _ = find_input_sites(model, samples)
    new = apply_structure(model, SequenceLength(length=16).rewrite(model, site, None))
    with torch.no_grad():
        before, after = (m(**samples.kwargs) for m in (model, new))
    torch.testing.assert_close(after[:4], before[:4])
    assert not torch.allclose(after[4], before[4])
    runtime = OnnxRuntime()
    (got,) = runtime.run(runtime.lower(Program.export(new, samples[:2]), samples[:2]), samples)
    torch.testing.assert_close(got, after, rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_every_position_is_left_alone_with_the_reason() -> None:
    sites, (refusal,) = find_input_sites(Sentences(fixed=True).eval(), sentences([9, 16]))
    assert not sites and refusal.where == "#input.0 length" and "fixes the length of its sequences" in refusal.reason
    sites, (refusal,) = find_input_sites(nn.Embedding(50, 4).eval(), Samples.of(torch.ones(2, LENGTH, dtype=torch.int64)))
    assert not sites and "outputs change their shape with the length" in refusal.reason


def test_what_holds_no_tokens_or_fewer_is_refused() -> None:
    image = Site(id="#input.0", kind="input", op="input", shape=(1, 3, 32, 32), resizable=True)
    assert SequenceLength.candidates(image) == ()
    for site, length in ((image, 8), (tokens(16), 17)):
        with pytest.raises(UnsupportedSite, match="only the tokens of a model"):
            SequenceLength(length=length).rewrite(nn.Identity(), site, None)


def test_a_search_cuts_padding_and_says_what_the_certificate_leaves_out(tmp_path: Path) -> None:
    lengths = torch.randint(3, 13, (400,), generator=torch.Generator().manual_seed(1)).tolist()

    class Texts:
        def example(self) -> Samples:
            return sentences(lengths[:2])

        def data(self, split: str) -> Samples | None:
            return {"search": sentences(lengths[:200]), "holdout": sentences(lengths[200:])}.get(split)

    result = slimline.compress(
        Sentences().eval(),
        Texts(),
        budget=slimline.Budget(max_drop="2%", minimize="macs"),
        time="20s",
        methods=("sequence_length",),
        metric="cosine",
        out=tmp_path,
    )
    (cut,) = [d for d in result.report.decisions if d.site == "#input.0"]
    assert cut.method == "sequence_length" and cut.before == "32 positions" and cut.options["trim"], "no text is longer than twelve words"
    assert result.report.verdict == "pass" and result.report.compressed is not None
    assert any("latency of other texts: padding costs nothing" in n for n in result.report.not_checked)
    usual = int(torch.tensor(lengths[:128]).sort().values[64])
    assert result.report.baseline.macs / result.report.compressed.macs > LENGTH / usual / 1.5


def test_the_cut_side_is_said_where_a_model_is_printed() -> None:
    assert repr(Crop(8, "start")) == "Crop(to 8 positions, cut at the start)"


@pytest.mark.parametrize("start", [False, True], ids=["padded at the end", "padded at the start"])
def test_padding_is_cut_at_every_call_and_changes_nothing(start: bool) -> None:
    model, samples = Sentences(placed=not start).eval(), sentences([3, 9, 30, 1], start)
    (site,), _ = find_input_sites(model, samples)
    assert site.mask == "#input.1" and site.padding == 0
    new = apply_structure(model, SequenceLength(side=site.padded, trim=True).rewrite(model, site, None))
    with torch.no_grad():
        before, after = (m(**samples.kwargs) for m in (model, new))
    torch.testing.assert_close(after, before)
    artifact = OnnxRuntime().lower(Program.export(new, samples[:2]), samples[:2])
    for batch in (1, 4):
        (got,) = OnnxRuntime().run(artifact, samples, batch=batch)
        torch.testing.assert_close(got, before, rtol=1e-4, atol=1e-5)


def test_a_word_that_is_told_where_it_stands_keeps_its_place_so_padding_before_it_stays() -> None:
    (site,), (refusal,) = find_input_sites(Sentences().eval(), sentences([9, 16], start=True))
    assert not site.mask and refusal.where == "#input.0 padding" and "change where its padding is cut" in refusal.reason
    with pytest.raises(UnsupportedSite, match="nothing says what is padding"):
        SequenceLength(trim=True).rewrite(nn.Identity(), site, None)


def test_without_a_mask_the_ids_say_what_is_padding_or_nothing_does() -> None:
    class Own(Sentences):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(ids, (ids > 0).long())

    ids = sentences([9, 30]).kwargs["ids"]
    (site,), _ = find_input_sites(Own().eval(), Samples.of({"ids": ids}))
    assert site.mask == "#input.0" and site.padding == 0
    full = torch.arange(1, LENGTH + 1).repeat(2, 1)
    (site,), (refusal,) = find_input_sites(Own().eval(), Samples.of({"ids": full}))
    assert not site.mask and "the example's first text is not filled up" in refusal.reason
