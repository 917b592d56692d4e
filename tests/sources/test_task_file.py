"""Task files: what they may give, and how their mistakes are told."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slimline.errors import DataError, ModelError, SlimlineError, UsageError
from slimline.sources.task_file import TaskFile

MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
"""


def task(folder: Path, text: str = "", *, name: str = "task.py", base: str = MODEL, **options: Any) -> TaskFile:
    file = folder / name
    file.write_text(base + textwrap.dedent(text))
    return TaskFile.load(str(file) + options.pop("factory", ""), **options)


def data(body: str) -> str:
    return "def data(split):\n" + textwrap.indent(textwrap.dedent(body), "    ")


def test_model_is_made_once_and_named_after_its_file(tmp_path: Path) -> None:
    t = task(tmp_path, "def small():\n    return nn.Linear(4, 3).eval()")
    assert t.model() is t.model() and t.name == "task"
    other = TaskFile.load(f"{tmp_path}/task.py:small")
    assert isinstance(other.model(), nn.Linear) and other.name == "task_small"


def test_missing_factory_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no function net\(\).*task\.py:model"):
        task(tmp_path, factory=":net").model()


@pytest.mark.parametrize(("name", "says"), [("none.py", "does not exist"), (".", "is a folder"), ("weights.pt", "no Python file")])
def test_path_that_is_no_task_file(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=says):
        TaskFile.load(str(tmp_path / name))


@pytest.mark.parametrize(("text", "says"), [
    ("x = 1 / 0", r"raised ZeroDivisionError: division by zero \(at .*task\.py:2\)"),
    ("def broken(:\n    pass", r"raised SyntaxError.*task\.py:2\)"),
    ("import sys\nsys.exit('no GPU')", r"raised SystemExit: no GPU \(at .*task\.py:3\)"),
    ("import no_such_module", r"ModuleNotFoundError: No module named 'no_such_module' \(at .*task\.py:2\)"),
])  # fmt: skip
def test_file_that_raises_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        task(tmp_path, text, base="\n")


def test_functions_that_raise_are_told_with_their_line(tmp_path: Path) -> None:
    t = task(tmp_path, data("return load(split)") + "\ndef load(split):\n    raise OSError('no\\nsuch   file')")
    with pytest.raises(DataError, match=r"data\('search'\) in .*task\.py raised OSError: no such file \(at .*task\.py:11\)"):
        t.data("search")
    with pytest.raises(ModelError, match=r"model\(\) in .* raised RuntimeError.*task\.py:4"):
        task(tmp_path, "", base="import torch\nfrom torch import nn\ndef model():\n    return nn.Linear(2, 2)(torch.zeros(1, 3))\n").model()


def test_signature_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"TypeError: data\(\) takes 0 positional arguments"):
        task(tmp_path, "def data():\n    return None").data("search")


def test_neighbours_are_importable_also_later_and_do_not_leak(tmp_path: Path) -> None:
    before = list(sys.path)
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "numbers_beside.py").write_text(f"N = {number}")
        (folder / "later_beside.py").write_text(f"M = {10 * number}")
        t = task(
            folder, "import numbers_beside\ndef example():\n    import later_beside\n    return torch.full((1, 4), float(numbers_beside.N + later_beside.M))"
        )
        found.append(t.example().args[0][0, 0].item())
    assert found == [11.0, 22.0] and sys.path == before


def test_imported_module_called_data_is_not_the_data_function(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("X = 1")
    t = task(tmp_path, "import data\ndef example():\n    return torch.zeros(1, 4)")
    assert t.data("train") is None


def test_weights_load_strictly_and_tied_names_need_one(tmp_path: Path) -> None:
    own = task(tmp_path).model().state_dict()
    twice = {k: v * 2 for k, v in own.items()}
    assert torch.equal(task(tmp_path, weights=twice).model().state_dict()["0.weight"], own["0.weight"] * 2)
    broken = {**twice, "extra": torch.zeros(1), "0.bias": torch.zeros(9)}
    del broken["2.weight"]
    with pytest.raises(ModelError, match=r"missing: 2\.weight; unexpected: extra; of another shape: 0\.bias \[9\] for \[8\]"):
        task(tmp_path, weights=broken).model()
    tied = "import torch\nfrom torch import nn\ndef model():\n    a, b = nn.Linear(2, 2), nn.Linear(2, 2)\n    b.weight = a.weight\n    return nn.Sequential(a, b).eval()\n"
    model = task(tmp_path, base=tied, weights={"1.weight": torch.ones(2, 2), "0.bias": torch.zeros(2), "1.bias": torch.zeros(2)}).model()
    assert torch.equal(model.state_dict()["0.weight"], torch.ones(2, 2))


def test_training_mode_names_the_factory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\(\) in .*task\.py is in training mode \(the model itself"):
        task(tmp_path, base="from torch import nn\ndef model():\n    return nn.Sequential(nn.Linear(2, 2))\n").model()


@pytest.mark.parametrize("returned", [
    "torch.arange(8.).reshape(2, 4), torch.tensor([1, 2])",
    "[(torch.arange(4.).reshape(1, 4), torch.tensor([1])), (torch.arange(4., 8.).reshape(1, 4), torch.tensor([2]))]",
    "torch.arange(8.).reshape(2, 4).numpy(), [1, 2]",
    "torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(8.).reshape(2, 4), torch.tensor([1, 2])), batch_size=1)",
    "((torch.arange(4. * i, 4. * i + 4)[None], torch.tensor([i + 1])) for i in range(2))",
    "torch.arange(8., requires_grad=True).reshape(2, 4), torch.tensor([1, 2])",
])  # fmt: skip
def test_whole_batched_and_array_data_give_the_same_samples(tmp_path: Path, returned: str) -> None:
    samples = task(tmp_path, data(f"return ({returned}) if split == 'train' else None")).given("train")
    assert samples is not None
    assert torch.equal(samples.args[0], torch.arange(8.0).reshape(2, 4)) and samples.targets.tolist() == [1, 2]
    assert not samples.args[0].requires_grad


def test_dicts_tuples_and_nested_targets_keep_their_structure(tmp_path: Path) -> None:
    batches = "[({'ids': torch.ones(2, 3).long(), 'mask': torch.ones(2, 3)}, {'a': torch.zeros(2), 'b': (torch.zeros(2, 1),)}) for _ in range(3)]"
    samples = task(tmp_path, data(f"return {batches}")).given("search")
    assert samples is not None and len(samples) == 6 and list(samples.kwargs) == ["ids", "mask"] and samples.targets["b"][0].shape == (6, 1)
    pair = task(tmp_path, data("return (torch.zeros(4, 2), torch.ones(4, 3)), None")).given("search")
    assert pair is not None and len(pair.args) == 2 and pair.targets is None


@pytest.mark.parametrize(("returned", "says"), [
    ("torch.zeros(3, 4)", r"data\('search'\) returned a Tensor\. Return \(inputs, targets\)"),
    ("{'x': torch.zeros(3)}", "returned a dict"),
    ("5", "returned a int"),
    ("(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3))", "whose item 0 is a Tensor, not a pair"),
    ("[]", "without batches"),
    ("('x', torch.zeros(1))", r"data\('search'\): inputs are a str"),
    ("(torch.tensor(1.), None)", "no sample axis"),
    ("[(torch.zeros(1, 4), None), (torch.zeros(1, 5), None)]", r"batch 1 has samples of torch\.float32 \[5\], batch 0 of torch\.float32 \[4\]"),
    ("[(torch.zeros(1, 4), None), ((torch.zeros(1, 4),) * 2, None)]", "batch 1 is built differently"),
    ("torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(9, 4), torch.zeros(9)), shuffle=True)", "shuffles.*shuffle=False"),
    ("Noisy()", "another first batch.*fixed order"),
    ("(__import__('numpy').array([['a']], dtype=object), None)", r"data\('search'\): An array holds object, not numbers"),
    ("(torch.zeros(2, 4), __import__('numpy').array(['cat', 'dog']))", "An array holds <U3, not numbers.*numbered from 0"),
    ("torch.utils.data.TensorDataset(torch.zeros(9, 4), torch.zeros(9))", "a TensorDataset, whose items are single samples.*DataLoader"),
    ("list(zip(torch.zeros(9, 4), torch.zeros(9)))", r"item 0 holds a tensor of shape \(\) in the place of a batch.*DataLoader"),
    ("[(torch.zeros(4), 1), (torch.zeros(4), 2)]", "item 0 holds a int in the place of a batch"),
])  # fmt: skip
def test_data_that_the_contract_does_not_allow(tmp_path: Path, returned: str, says: str) -> None:
    text = "class Noisy:\n    def __iter__(self):\n        yield torch.rand(2, 4), torch.zeros(2)\n" + data(f"return {returned}")
    with pytest.raises(DataError, match=says):
        task(tmp_path, text).given("search")


COUNTED = "calls = []\n"


def splits(tmp_path: Path, **sizes: int) -> TaskFile:
    body = f"calls.append(split)\nn = {sizes!r}.get(split)\nreturn None if n is None else (torch.arange(float(n))[:, None].repeat(1, 4), torch.arange(n) % 5)"
    return task(tmp_path, COUNTED + data(body))


def ids(t: TaskFile, split: str) -> list[int]:
    samples = t.data(split)
    assert samples is not None
    return [int(v) for v in samples.args[0][:, 0]]


def test_given_splits_stay_and_each_is_asked_for_once(tmp_path: Path) -> None:
    t = splits(tmp_path, train=40, search=30, holdout=20)
    for _ in range(2):
        assert [len(ids(t, s)) for s in ("train", "search", "holdout")] == [40, 30, 20]
    t.example()
    assert t.holdout_source == "user" and sorted(t.source.module.calls) == ["holdout", "search", "train"]


def test_missing_holdout_is_half_of_search_and_stratified(tmp_path: Path) -> None:
    t = splits(tmp_path, train=40, search=50)
    search, holdout = ids(t, "search"), ids(t, "holdout")
    assert sorted(search + holdout) == list(range(50)) and len(search) == 25 and search == sorted(search)
    held = t.data("holdout")
    assert held is not None and torch.bincount(held.targets).tolist() == [5, 5, 5, 5, 5]
    assert t.holdout_source == "from_search" and len(ids(t, "train")) == 40


def test_both_missing_are_a_tenth_of_train_each_and_leave_it(tmp_path: Path) -> None:
    t = splits(tmp_path, train=100)
    train, search, holdout = ids(t, "train"), ids(t, "search"), ids(t, "holdout")
    assert sorted(train + search + holdout) == list(range(100)) and (len(search), len(holdout)) == (10, 10)
    held = t.data("holdout")
    assert held is not None and torch.bincount(held.targets).tolist() == [2, 2, 2, 2, 2]
    assert t.holdout_source == "from_train"
    again = splits(tmp_path, train=100)
    assert ids(again, "holdout") == holdout and again.source.module.calls == ["search", "holdout", "train"]


def test_only_a_holdout_is_halved_and_train_alone_fills_a_missing_search(tmp_path: Path) -> None:
    t = splits(tmp_path, holdout=20)
    assert t.data("train") is None and sorted(ids(t, "search") + ids(t, "holdout")) == list(range(20)) and t.holdout_source == "user"
    t = splits(tmp_path, train=100, holdout=20)
    assert (len(ids(t, "train")), len(ids(t, "search")), len(ids(t, "holdout"))) == (90, 10, 20)


def test_too_few_samples_to_divide(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\('train'\) has 15 samples, too few.*at least 20"):
        splits(tmp_path, train=15).data("holdout")


def test_no_data_at_all_needs_an_example(tmp_path: Path) -> None:
    t = task(tmp_path, "def example():\n    return {'x': torch.zeros(3, 4)}")
    assert [t.data(s) for s in ("train", "search", "holdout")] == [None, None, None] and t.holdout_source is None
    assert len(t.example()) == 3
    with pytest.raises(ModelError, match=r"neither data nor an example.*example\(\)"):
        task(tmp_path).example()


def test_default_example_is_two_samples_of_the_first_split_there_is(tmp_path: Path) -> None:
    t = splits(tmp_path, train=40, search=30, holdout=20)
    example = t.example()
    assert len(example) == 2 and example.targets is None and t.source.module.calls == ["search"]


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'test'"):
        splits(tmp_path, train=40).data("test")


def test_loss_defaults_to_cross_entropy_for_class_labels_only(tmp_path: Path) -> None:
    t = task(tmp_path)
    scores, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = t.loss({"logits": scores}, labels.int())
    assert loss is not None and torch.allclose(loss, -scores.log_softmax(1)[torch.arange(6), labels].mean())
    assert t.loss(scores, labels.float()) is None and t.loss(scores, None) is None and not t.has_loss


def test_own_metric_and_loss_are_used_and_their_mistakes_told(tmp_path: Path) -> None:
    t = task(tmp_path, "def metric(o, t):\n    return o.sum()\ndef loss(o, t):\n    return o")
    assert t.metric(torch.ones(3), None) == 3 and t.metric_name == "metric" and t.has_metric and t.has_loss
    with pytest.raises(DataError, match=r"loss.* returned a tensor of shape \(3,\)"):
        t.loss(torch.ones(3), None)
    with pytest.raises(DataError, match=r"metric\(\.\.\.\) in .* raised AttributeError"):
        t.metric(7, None)
    named = TaskFile.load(str(tmp_path / "task.py"), metric="top5")
    assert named.metric_name == "top5" and not named.has_metric
    with pytest.raises(DataError, match="defines no metric"):
        task(tmp_path, name="plain.py").metric(torch.ones(1), None)


def test_functions_from_another_file_go_first(tmp_path: Path) -> None:
    (tmp_path / "new_data.py").write_text("import torch\ndef data(split):\n    return torch.ones(4, 4), torch.ones(4).long()\n")
    t = task(tmp_path, data("return torch.zeros(4, 4), torch.zeros(4).long()") + "\ndef metric(o, t):\n    return 0.5", data=tmp_path / "new_data.py")
    samples = t.data("search")
    assert samples is not None and samples.args[0].min() == 1 and t.has_metric
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(DataError, match=r"empty\.py defines none of data"):
        task(tmp_path, data=tmp_path / "empty.py")
    with pytest.raises(DataError, match="does not exist"):
        task(tmp_path, data=tmp_path / "none.py")


def test_function_that_is_no_function_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlimlineError, match="data is a tuple, not a function"):
        task(tmp_path, "data = (1, 2)").data("train")
    (tmp_path / "net.py").write_text("import torch\nmodel = torch.nn.Linear(2, 2)\n")
    with pytest.raises(SlimlineError, match=r"model is a Linear, not a function.*returning it"):
        TaskFile.load(str(tmp_path / "net.py")).model()


def test_small_view_does_not_keep_a_large_storage(tmp_path: Path) -> None:
    samples = task(tmp_path, data("x = torch.zeros(1000, 4)\nreturn x[:10], torch.zeros(10)")).given("search")
    assert samples is not None and samples.args[0].untyped_storage().nbytes() == 10 * 4 * 4


SLICED = """
import torch


def model():
    return torch.nn.Linear(2, 2).eval()


def data(split):
    return (torch.arange(80.0).reshape(40, 2), torch.arange(40) % 2) if split == "search" else None


def slices(split):
    assert split == "search"
    return {"parity": [i % 2 for i in range(40)], "half": ["low" if i < 20 else "high" for i in range(40)]}
"""


def test_slices_follow_the_samples_of_a_derived_split(tmp_path: Path) -> None:
    found = task(tmp_path, base=SLICED)
    holdout = found.data("holdout")
    assert holdout is not None and found.origin("holdout").split == "search"
    index = found.origin("holdout").index
    assert index is not None and torch.equal(holdout.args[0][:, 0], 2.0 * index)
    assert found.slices("holdout") == {"parity": tuple(str(int(i) % 2) for i in index), "half": tuple("low" if i < 20 else "high" for i in index)}


def test_slices_of_another_length_are_refused_and_none_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"slices\('search'\) in .* returned 3 values for 40 samples"):
        task(tmp_path, base=SLICED.replace("return {", "return [1, 2, 3]\n    return {")).slices("holdout")
    assert task(tmp_path, base=SLICED.replace("def slices", "def other")).slices("holdout") == {}


def test_labels_of_wide_unsigned_integers_divide_as_any_others(tmp_path: Path) -> None:
    body = "import numpy as np\nreturn (np.zeros((40, 4), 'float32'), (np.arange(40) % 4).astype('uint16')) if split == 'search' else None"
    t = task(tmp_path, data(body))
    search, holdout = t.data("search"), t.data("holdout")
    assert search is not None and holdout is not None
    assert search.targets.dtype == torch.int64 and search.targets.bincount().tolist() == holdout.targets.bincount().tolist() == [5, 5, 5, 5]


WEIGHED = SLICED.replace("def slices(split):", "def sample_weights(split):\n    assert split == 'search'\n    return range(40)\n\n\ndef slices(split):")


def test_weights_follow_the_samples_of_a_derived_split(tmp_path: Path) -> None:
    found = task(tmp_path, base=WEIGHED)
    index = found.origin("holdout").index
    weights = found.sample_weights("holdout")
    assert found.has_sample_weights and index is not None and weights is not None and weights.tolist() == index.tolist()
    assert found.sample_weights("train") is None


@pytest.mark.parametrize(
    ("given", "says"), [("[1, 2]", r"the shape \(2,\) for 40"), ("[-1] + [1] * 39", "from -1 to 1"), ("[0] * 40", "from 0 to 0"), ("'many'", "returned a str")]
)
def test_weights_that_are_none_are_refused(tmp_path: Path, given: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"sample_weights\('search'\) in .* returned {'weights ' if 'from' in says else ''}{says.removeprefix('returned ')}"):
        task(tmp_path, base=WEIGHED.replace("return range(40)", f"return {given}")).sample_weights("search")
    assert not task(tmp_path, base=SLICED).has_sample_weights
