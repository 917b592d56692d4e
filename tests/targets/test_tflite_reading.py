"""The memory planner: nothing that lives at the same time overlaps, and it packs as TensorFlow Lite Micro does."""

from __future__ import annotations

import random

from slimline.targets._tflite_reading import Buffer, peak, plan


def test_buffers_that_live_together_never_overlap_and_none_is_wasted() -> None:
    draw = random.Random(0)
    for _ in range(200):
        buffers = [Buffer(draw.randrange(1, 200), first := draw.randrange(12), min(11, first + draw.randrange(5))) for _ in range(10)]
        offsets = plan(buffers)
        for i, a in enumerate(buffers):
            for j, b in enumerate(buffers[:i]):
                together = a.first <= b.last and b.first <= a.last
                apart = offsets[i] >= offsets[j] + b.nbytes or offsets[j] >= offsets[i] + a.nbytes
                assert apart or not together
        alive = max(sum(-(-b.nbytes // 16) * 16 for b in buffers if b.first <= t <= b.last) for t in range(12))
        assert alive <= peak(buffers) <= sum(-(-b.nbytes // 16) * 16 for b in buffers)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    assert peak([Buffer(64, 0, 0), Buffer(1600, 0, 1), Buffer(800, 1, 2), Buffer(32, 2, 2)]) == 2400
