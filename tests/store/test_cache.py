from __future__ import annotations

import errno
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slimline.core.site import Site
from slimline.store.cache import Cache, digest_tensors, fingerprint, key

TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(3, dtype=torch.int64),
}


def test_what_was_put_is_got_back_by_another_cache_on_the_folder(tmp_path: Path) -> None:
    Cache(tmp_path / "c").put("k", TENSORS, {"loss": [0.25, None]})
    found = Cache(tmp_path / "c").get("k")
    assert found is not None and found[1] == {"loss": [0.25, None]}
    assert found[0].keys() == TENSORS.keys()
    assert all(torch.equal(found[0][n], t) and found[0][n].dtype == t.dtype for n, t in TENSORS.items())
    assert Cache(tmp_path / "c").get("other") is None


def test_an_entry_may_hold_a_value_alone_or_parameters_that_are_tied(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("value", {}, 3)
    assert cache.get("value") == ({}, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    cache.put("tied", model.state_dict())
    found = cache.get("tied")
    assert found is not None and torch.equal(found[0]["1.weight"], model[0].weight)


def test_the_folder_is_the_users_alone_and_holds_no_half_written_file(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    Cache(folder).put("k", TENSORS)
    (folder / "killed.part").write_bytes(b"half")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    Cache(folder)
    assert [f.name for f in folder.iterdir()] == ["k.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_entry_is_absent_and_removed(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    cache.put("k", TENSORS, 1)
    file = tmp_path / "k.safetensors"
    raw = file.read_bytes()
    file.write_bytes({"cut": raw[:-5], "flipped": raw[:-30] + bytes([raw[-30] ^ 1]) + raw[-29:], "emptied": b"", "foreign": b"PK\x03\x04" * 50}[damage])
    assert cache.get("k") is None
    assert not file.exists()
    cache.put("k", TENSORS, 2)
    found = cache.get("k")
    assert found is not None and found[1] == 2


def test_a_full_disk_raises_its_number_and_leaves_no_part(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from slimline.store.cache import Cache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Cache(Path(sys.argv[1])).put('k', {'x': torch.zeros(10000)})\n"
        "except OSError as error: print(error.errno)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) == errno.EFBIG, "a file size limit stands in for the disk's"
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("k", TENSORS, 1)
    with pytest.raises(TypeError, match="not JSON"):
        cache.put("k", TENSORS, object())
    found = cache.get("k")
    assert found is not None and found[1] == 1
    with pytest.raises(OSError, match="No such file"):
        Cache.put(_moved(cache, tmp_path / "gone"), "k", TENSORS)


def _moved(cache: Cache, folder: Path) -> Cache:
    cache.folder = folder
    return cache


def test_a_key_is_of_the_content_not_of_the_object_or_the_process() -> None:
    site = Site(id="a.weight", kind="weight", op="linear", shape=(2, 2))
    here = key("x", {"b": 1.5, "a": (1, 2)}, site, torch.ones(2))
    code = "import torch; from slimline.store.cache import key; from slimline.core.site import Site; print(key('x', {'a': [1, 2], 'b': 1.5}, Site(id='a.weight', kind='weight', op='linear', shape=(2, 2)), torch.ones(2)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == here
    assert len({here, key("x"), key("x", 1), key("x", "1"), key("x", torch.ones(2)), key("x", torch.ones(3)), key("x", torch.ones(2, dtype=torch.int32))}) == 7


def test_a_key_of_an_object_without_content_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        key({1, 2})


def test_a_digest_tells_names_types_shapes_and_bytes_apart_but_not_layouts() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    different = [{"x": x}, {"y": x}, {"x": x.reshape(3, 2)}, {"x": x.double()}, {"x": x.int()}, {"x": x + 1}, {"x": x, "y": x}, {}]
    assert len({digest_tensors(d) for d in different}) == len(different)
    assert digest_tensors({"x": x.T.contiguous().T}) == digest_tensors({"x": x})
    assert digest_tensors({"a": x, "b": x + 1}) == digest_tensors({"b": x + 1, "a": x})


class Masked(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2,), value), persistent=False)


def test_architecture_and_weights_have_digests_of_their_own() -> None:
    torch.manual_seed(0)
    model, retrained = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    strided = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2))
    strided.load_state_dict(model.state_dict())
    a, b, c = (fingerprint(m, {}) for m in (model, retrained, strided))
    assert a.architecture == b.architecture != c.architecture
    assert a.weights == c.weights != b.weights
    assert fingerprint(model, {}) == a != fingerprint(model, {"x": torch.ones(1)})


def test_tying_is_architecture_and_unsaved_buffers_are_weights() -> None:
    apart = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    apart[1].load_state_dict(apart[0].state_dict())
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[0].load_state_dict(apart[0].state_dict())
    tied[1].weight = tied[0].weight
    assert fingerprint(apart, {}).weights == fingerprint(tied, {}).weights
    assert fingerprint(apart, {}).architecture != fingerprint(tied, {}).architecture
    assert fingerprint(Masked(0.0), {}).weights != fingerprint(Masked(1.0), {}).weights
