"""Pruning from scratch: train, prune 20 %, retrain, evaluate, and again until the accuracy allowance is used up.

    python examples/walkthrough.py                          # scikit-learn's digits, 64-128-10, under a minute
    python examples/walkthrough.py --mnist FOLDER           # 784-128-10; the four .gz files of MNIST, or mnist.npz
    python examples/walkthrough.py --allow 0.5

The method is that of Han et al. (NIPS 2015): what matters least goes to zero and is held there while the rest is trained on. Every step is
written out here in plain PyTorch; ``slimline compress`` does the same with better scores, jointly with all other methods.

What a weight matters is scored by its magnitude |w|: set to zero, it moves the layer's output by w x, and with inputs of like size and no
other knowledge of x the smallest |w| moves it least. Scores that know more are the alternatives: w² E[x²] where inputs differ in size, (g w)² with the gradient g
of the loss (Taylor), w² / [H⁻¹]ii, by which the other weights make up for it (optimal brain surgeon). All weights of the network share
one threshold here ("global"); the printed table shows what one per layer would have kept.

Write-ups of this exercise repeat three mistakes, which ``mistakes`` checks:

- ``|w| / w`` is no importance: it is the sign of w, +1 or -1 for every weight, and undefined for those that are zero already.
- Setting whole tensors to zero where their sum is small prunes no weights: a layer of large weights of both signs sums to about nothing.
- For A = [[.1, .2], [.3, .4]] and v = [.5, .6] the product u = A v is [.17, .39].
"""

from __future__ import annotations

import argparse
import copy
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.formats import Affine, Float, Format, Masked
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.targets.onnxruntime import OnnxRuntime

STEP = 0.2  # of the weights that are left, which go in each round
EPOCHS, RETRAINED = 30, 10
MOST_ROUNDS = 25
WEIGHTS = ("0.weight", "2.weight")
Part = tuple[Tensor, Tensor]
Masks = dict[str, Tensor]


def mistakes() -> None:
    """What common write-ups get wrong, in numbers."""
    w = torch.tensor([0.9, -0.01, 0.01])
    assert (w.abs() / w).tolist() == [1.0, -1.0, 1.0] == w.sign().tolist()  # the smallest weight scores as the largest
    layer = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    assert float(layer.sum()) == 0.0 and float(layer.abs().min()) == 5.0  # by its sum it would go first
    u = torch.tensor([[0.1, 0.2], [0.3, 0.4]]) @ torch.tensor([0.5, 0.6])
    torch.testing.assert_close(u, torch.tensor([0.17, 0.39]))


def digits() -> tuple[Part, Part, Part]:
    """Training, validation and test samples: ``[N, 64]`` in [0, 1]."""
    table = load_digits()
    x, y = torch.as_tensor(table.data, dtype=torch.float32) / 16, torch.as_tensor(table.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return tuple((x[i], y[i]) for i in order.split([900, 397, 500]))  # type: ignore[return-value]


def mnist(path: Path, trained: int) -> tuple[Part, Part, Part]:
    """The same of MNIST, ``[N, 784]``: ``trained`` of the 60,000 to train on, the others to choose by, 10,000 to test."""
    names = ("train-images", "train-labels", "t10k-images", "t10k-labels")
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    else:
        arrays = [_idx(next(p for p in sorted(path.iterdir()) if p.name.startswith(name))) for name in names]
    x, y, x_test, y_test = (torch.as_tensor(a.astype(np.float32 if a.ndim > 1 else np.int64)) for a in arrays)
    x, x_test = x.flatten(1) / 255, x_test.flatten(1) / 255
    return (x[:trained], y[:trained]), (x[trained:], y[trained:]), (x_test, y_test)


def _idx(path: Path) -> np.ndarray[Any, Any]:
    """An array in the format of MNIST's site: two zeros, a type, the number of dimensions, the dimensions, bytes."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def train(network: nn.Module, part: Part, epochs: int, masks: Masks, rate: float) -> None:
    """Adam and cross-entropy; what a mask removed is set to zero again after each step."""
    x, y = part
    batch = 50 if len(y) < 10_000 else 128
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(y) // batch))
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
            hold(network, masks)


@torch.no_grad()
def hold(network: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        network.get_parameter(name).mul_(mask)


def prune(network: nn.Module, masks: Masks, share: float) -> Masks:
    """Masks without ``share`` of the weights that are left, those of the smallest magnitude in the whole network."""
    scores = {name: network.get_parameter(name).detach().abs() for name in WEIGHTS}
    left = torch.cat([scores[name][masks[name]] for name in WEIGHTS])
    threshold = left.kthvalue(max(1, round(share * len(left)))).values
    return {name: masks[name] & (scores[name] > threshold) for name in WEIGHTS}


@torch.no_grad()
def accuracy(network: nn.Module, part: Part) -> float:
    return float((network(part[0]).argmax(1) == part[1]).float().mean())


def lowered(network: nn.Module, masks: Masks | None, part: Part) -> tuple[int, float]:
    """Bytes of the ONNX file and its accuracy in ONNX Runtime: float weights without masks, else masks and 8-bit values."""
    samples = Samples.of(part[0])
    program = Program.export(network, samples[:2])
    edits = []
    for name in WEIGHTS if masks is not None else ():
        weight, mask = program.parameter(name).detach(), masks[name]  # type: ignore[index]
        format: Format = Masked(values=Affine(), sparsity=float((~mask).float().mean())) if not mask.all() else Float()
        edits.append(Encode(name, format, format.assign(weight, {"mask": mask, **Affine().encode(weight * mask)})))
    target = OnnxRuntime()
    artefact = target.lower(freeze(quantize(program, edits)), samples[:2])
    (scores,) = target.run(artefact, samples)
    return artefact.size_bytes, float((scores.argmax(1) == part[1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="a folder with MNIST's four files, or mnist.npz")
    parser.add_argument("--allow", type=float, default=1.0, help="points of validation accuracy that may be lost")
    parser.add_argument("--trained", type=int, default=50_000, help="of MNIST's training samples, that are trained on; the others choose")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.manual_seed(0)
    mistakes()
    training, validation, test = digits() if options.mnist is None else mnist(options.mnist, options.trained)
    network = nn.Sequential(nn.Linear(training[0].shape[1], 128), nn.ReLU(), nn.Linear(128, 10))
    train(network, training, options.epochs, {}, 3e-3)
    network.eval()
    dense = accuracy(network, validation)
    count = sum(network.get_parameter(name).numel() for name in WEIGHTS)
    shown = "-".join(str(n) for n in (training[0].shape[1], 128, 10))
    print(f"dense {shown}: {count:,} weights, {dense:.2%} of the validation samples right; {options.allow:g} points may be lost")
    print("round  weights left  pruned  retrained   first layer / second, by one threshold")
    kept, masks = copy.deepcopy(network), {name: torch.ones_like(network.get_parameter(name), dtype=torch.bool) for name in WEIGHTS}
    best = masks
    for turn in range(1, MOST_ROUNDS + 1):
        masks = prune(network, masks, STEP)
        hold(network, masks)
        before = accuracy(network, validation)
        train(network, training, max(1, RETRAINED * options.epochs // EPOCHS), masks, 1e-3)
        after = accuracy(network, validation)
        left = sum(int(m.sum()) for m in masks.values())
        shares = " / ".join(f"{float(masks[name].float().mean()):.0%}" for name in WEIGHTS)
        print(f"{turn:5d}  {left / count:11.1%}  {before:6.2%}  {after:9.2%}   {shares}")
        if after < dense - options.allow / 100:
            break  # the allowance is used up: the round before it is what is kept
        kept, best = copy.deepcopy(network), masks
    left = sum(int(m.sum()) for m in best.values())
    print(f"kept: {left:,} of {count:,} weights, {accuracy(kept, test):.2%} of the test samples right")
    for label, which in (("float32, zeros and all", None), ("masks and 8-bit values", best)):
        size, right = lowered(kept, which, test)
        print(f"as a file ({label}): {size:,} bytes, {right:.2%} right in ONNX Runtime")


if __name__ == "__main__":
    main()
