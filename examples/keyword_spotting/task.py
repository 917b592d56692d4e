"""Keyword spotting on a microcontroller: a depthwise-separable network of the shape that MLPerf Tiny uses, on synthetic audio.

    slimline compress examples/keyword_spotting/task.py --device cortex-m4-256k --time 5m --out build/keywords

leaves ``model.tflite`` and ``model.h``, a C array with the size of the arena. The words are made up: each is a
sequence of tones that glide, spoken at its own pace and pitch with noise around it; real recordings go into ``data``.

The network is DS-CNN of Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, in the size of
Banbury et al., "MLPerf Tiny Benchmark", 2021: 49 frames of 10 cepstral coefficients in, 12 classes out.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE, FRAME, STEP, FRAMES, BANDS, COEFFICIENTS = 16_000, 640, 320, 49, 40, 10
WORDS, TONES = 12, 4
TRAIN, SEARCH, HOLDOUT = 2_400, 600, 1_200
EPOCHS, BATCH = 6, 64


class SeparableNet(nn.Module):
    """Features ``[N, 1, 49, 10]`` to class scores ``[N, 12]``."""

    def __init__(self, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()

        def layer(given: int, kernel: int | tuple[int, int], **options: int | tuple[int, int]) -> list[nn.Module]:
            return [nn.Conv2d(given, channels, kernel, bias=False, **options), nn.BatchNorm2d(channels), nn.ReLU()]  # type: ignore[arg-type]

        stem = [nn.ZeroPad2d((1, 1, 4, 5)), *layer(1, (10, 4), stride=2)]
        body = [m for _ in range(blocks) for m in (*layer(channels, 3, padding=1, groups=channels), *layer(channels, 1))]
        self.features = nn.Sequential(*stem, *body)
        self.head = nn.Linear(channels, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x).mean((2, 3)))
        return scores


def waveforms(words: Tensor, generator: torch.Generator) -> Tensor:
    """A second of sound for each word, ``[N, 16000]``: its tones in turn, gliding, with a pitch, a pace and noise of its own."""
    count = len(words)
    tones = 300 + 2700 * torch.rand(WORDS, TONES, 2, generator=torch.Generator().manual_seed(7))

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    place = (torch.arange(RATE) / RATE - draw(0.0, 0.3)) / draw(0.5, 0.7)  # 0 to 1 while the word is spoken
    spoken = (place >= 0) & (place < 1)
    index = (place.clamp(0, 0.999) * TONES).long()
    share = place.clamp(0, 0.999) * TONES - index
    start, end = (tones[words, :, side].gather(1, index) for side in (0, 1))
    pitch = (start + (end - start) * share) * draw(0.85, 1.18)
    phase = (2 * math.pi * pitch / RATE).cumsum(1)
    voice = (phase.sin() + 0.5 * (2 * phase).sin()) * spoken * draw(0.3, 1.0)
    return voice + draw(0.3, 1.6) * torch.randn(count, RATE, generator=generator)


def features(sound: Tensor) -> Tensor:
    """Cepstral coefficients ``[N, 1, 49, 10]``: cosines of log energies in 40 bands that are equal in mel."""
    spectrum = sound.unfold(1, FRAME, STEP).mul(torch.hann_window(FRAME)).to(torch.float32)
    power = torch.fft.rfft(spectrum).abs().square()
    mel = torch.linspace(0, 2595 * math.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / RATE * FRAME
    bins = torch.arange(FRAME // 2 + 1)[:, None]
    up, down = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands = (power @ torch.minimum(up, down).clamp_min(0)).add(1e-3).log()
    cosines = torch.cos(math.pi / BANDS * (torch.arange(BANDS)[:, None] + 0.5) * torch.arange(COEFFICIENTS))
    found: Tensor = (bands @ cosines / BANDS)[:, None, :FRAMES]
    return found


@functools.cache
def data(split: str) -> tuple[Tensor, Tensor]:
    count, seed = {"train": (TRAIN, 0), "search": (SEARCH, 1), "holdout": (HOLDOUT, 2)}[split]
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (count,), generator=generator)
    return torch.cat([features(waveforms(part, generator)) for part in words.split(200)]), words


def model() -> nn.Module:
    """The trained network: fixed seed, one thread, one order of the samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return trained(SeparableNet(), *data("train"), EPOCHS).eval()
    finally:
        torch.set_num_threads(threads)


def trained(network: nn.Module, inputs: Tensor, words: Tensor, epochs: int) -> nn.Module:
    steps = epochs * math.ceil(len(words) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    for _ in range(epochs):
        for index in torch.randperm(len(words)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs[index]), words[index]).backward()
            optimizer.step()
            schedule.step()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network
