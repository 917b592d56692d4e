"""Changes of inputs, and which of them are found to be safe."""

from __future__ import annotations

import torch

from slimline.core.samples import Samples
from slimline.model.augment import Augmentation, find_augmentation

STRIPES = torch.arange(16.0).sin().expand(40, 1, 16, 16).contiguous()


def warped(strength: float) -> torch.Tensor:
    return Augmentation(warp=strength)(STRIPES, torch.Generator().manual_seed(0))


def off(x: torch.Tensor) -> float:
    return float((x - STRIPES).abs().mean())


def test_a_warp_changes_each_image_in_its_own_way_and_the_more_the_stronger_it_is() -> None:
    assert off(warped(0.0)) == 0.0 < off(warped(0.05)) < off(warped(0.1)) < off(warped(0.2))
    one, other = warped(0.1)[:2]
    assert one.shape == STRIPES[0].shape and not torch.equal(one, other)


def test_the_strongest_warp_that_the_original_stands_is_taken_where_warps_are_asked_for() -> None:
    limit = (off(warped(0.1)) + off(warped(0.2))) / 2
    samples = Samples.of(STRIPES, torch.zeros(40))

    def quality(changed: Samples) -> float:
        """Nothing but stripes that stand nearly as they stood is recognised; turned round or moved they are not."""
        x = changed.tensors[0]
        return 0.5 if torch.equal(x, STRIPES.flip(3)) or off(x) > limit else 1.0

    asked = find_augmentation(quality, samples, few=10, warp=True)
    assert asked.warp == 0.1 and not asked.flip and asked.shift == 0
    assert find_augmentation(quality, samples, few=10) == Augmentation()
