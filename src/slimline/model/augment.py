"""Changes of an input that leave the original's answers as good as they were, found by measuring.

Recovery trains on more than it was given: the teacher answers for every changed sample too. Only
changes under which the *original* keeps its quality are used, so that a digit is not mirrored and a
photograph is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from slimline.core.samples import Samples

TOLERANCE = 0.01  # of quality that a change may cost the original
SHARE = 8  # shifts go up to 1/8 of the height, as the usual 4 pixels of 32
WARPS = 0.2, 0.1, 0.05  # what is tried, the strongest first


@dataclass(frozen=True)
class Augmentation:
    """What is safe for these inputs: mirroring left and right, shifting by up to ``shift`` pixels, mixing pairs.

    ``warp``: each entry of the linear map from output to input coordinates differs from the identity's by up to as much, so that the image is turned, stretched and slanted.
    """

    flip: bool = False
    shift: int = 0
    mix: bool = False
    warp: float = 0.0

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """``x: [N, C, H, W]``, changed sample by sample."""
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self.shift:
            n, _, height, width = x.shape
            padded = functional.pad(x, (self.shift,) * 4, mode="replicate")
            down = torch.randint(0, 2 * self.shift + 1, (n, 1), generator=generator) + torch.arange(height)
            right = torch.randint(0, 2 * self.shift + 1, (n, 1), generator=generator) + torch.arange(width)
            x = padded[torch.arange(n)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
        if self.warp:
            maps = torch.eye(2, 3) + self.warp * (2 * torch.rand(len(x), 2, 3, generator=generator) - 1) * torch.tensor([1.0, 1.0, 0.0])
            x = functional.grid_sample(
                x, functional.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False), padding_mode="border", align_corners=False
            )
        return x

    @property
    def label(self) -> str:
        parts = [
            *(["mirror"] if self.flip else []),
            *([f"shift {self.shift} px"] if self.shift else []),
            *([f"warp {self.warp:.0%}"] if self.warp else []),
            *(["mix pairs"] if self.mix else []),
        ]
        return ", ".join(parts) or "none"


def find_augmentation(quality: Callable[[Samples], float], samples: Samples, *, few: int = 2_000, seed: int = 0, warp: bool = False) -> Augmentation:
    """The changes under which ``quality`` (of the original, higher is better) stays within one point.

    Only single image-like inputs (``[N, C, H, W]``, float) are changed. Fewer than ``few`` samples are
    also mixed in pairs: the teacher's answer to a mixture is as good a lesson as to a sample. ``warp``: warping is tried too, on top of what else was found;
    it is for trainings of many epochs.

    References:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.
    """
    tensors = samples.tensors
    if len(tensors) != 1 or not tensors[0].is_floating_point():
        return Augmentation()
    mix = len(samples) < few
    x = tensors[0]
    if x.ndim != 4 or min(x.shape[2:]) < SHARE:
        return Augmentation(mix=mix)
    base = quality(samples)

    def kept(trial: Augmentation) -> bool:
        changed = trial(x, torch.Generator().manual_seed(seed))
        inputs = (changed,) if samples.args else {next(iter(samples.kwargs)): changed}
        return quality(Samples.of(inputs, samples.targets)) >= base - TOLERANCE

    found = Augmentation()
    for trial in (Augmentation(flip=True), *(Augmentation(shift=max(1, x.shape[2] // d)) for d in (SHARE, 2 * SHARE, 4 * SHARE))):
        if trial.shift and found.shift:
            continue
        if kept(trial):
            found = Augmentation(found.flip or trial.flip, max(found.shift, trial.shift))
    for strength in WARPS if warp else ():
        trial = replace(found, warp=strength)
        if kept(trial):
            found = trial
            break
    return replace(found, mix=mix)
