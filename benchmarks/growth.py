"""How the search's time grows: with the number of sites, and with the number of calibration samples.

    python benchmarks/growth.py                                      # 20 to 200 weights, 64 to 512 samples
    python benchmarks/growth.py --weights 20,40 --samples 16,32 --net chain

Networks of random weights and random images, so that nothing but their size decides: residual ones (``--net residual``: blocks of two 3x3
convolutions of 16 channels on 8x8 positions, as in ResNet-20) and chains (``--net chain``: the same without shortcuts, whose channels are all sites of their own). Timed is what ``slimline
compress`` does before any training, with every option that it would offer and none left out for lack of time: finding sites, measuring all options,
solving for the best combination on a ladder of loss levels, and building, lowering and running ``--candidates`` of them.

Prints seconds for each part and the exponent of growth: the slope of the logarithms by least squares, 1 is linear. ``--out`` gets
``growth.json`` and ``growth.svg``. An option is measured by computing what lies downstream of it, so measuring all options of a deep network once costs
options times depth: that part grows with the square of the depth at a fixed number of samples. A job bounds it by its schedule (``search/schedule.py``), which
gives it a fifth of the time and lowers samples and options; ``--scheduled`` measures it so, with samples in inverse proportion to the options' number.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from slimline import Budget, Samples
from slimline.core.plan import Fingerprint, Method, Recovery
from slimline.core.registry import find, registered
from slimline.core.site import Site
from slimline.job.option_database import keep_option
from slimline.model.sites import find_sites
from slimline.report.plots import axis
from slimline.search.nearby import pruned
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Corrections, Space, Timing, layers_of
from slimline.search.strategies.allocate import solve
from slimline.search.workshop import Workshop

CHANNELS, SIDE, CLASSES = 16, 8, 10
LEVELS = (3e-4, 3e-3, 3e-2, 0.3, 1.5)  # nats: the ladder of ``allocate``
PARTS = ("sites", "options", "solving", "candidates")
COLOURS = {"total": "#1b1b1b", "sites": "#2f6fb3", "options": "#b3552f", "solving": "#3d8f4f", "candidates": "#8a5ab3"}
WIDTH, HEIGHT, LEFT, TOP = 420, 300, 70, 40
LINE = 15  # between two names


class Block(nn.Module):
    """Two convolutions, with or without a shortcut around them: ``[N, C, H, W]`` to the same shape."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(x + y if self.shortcut else y)


class Net(nn.Module):
    """``weights`` of them: a stem, blocks of two, a head; one more convolution where that leaves one over."""

    def __init__(self, weights: int, shortcut: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(shortcut) for _ in range((weights - 2) // 2)), *[nn.Conv2d(CHANNELS, CHANNELS, 1)] * (weights % 2))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))
        return scores


def net(weights: int, shortcut: bool) -> nn.Module:
    """Random, at a scale by which values neither fade nor explode with the depth."""
    torch.manual_seed(0)
    made = Net(weights, shortcut).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                module.bias.zero_()
            if isinstance(module, Block) and shortcut:
                module.second.weight.mul_((2 / weights) ** 0.5)
    return made


def offered(sites: Sequence[Site]) -> dict[str, list[Method]]:
    """What a run that minimises latency offers with training data."""
    methods = [m for n, m in registered("methods").items() if n != "keep"]
    return {s.id: [o for m in methods if s.kind in m.kinds for o in m.candidates(s) if not o.gains or "latency" in o.gains] for s in sites}


def search(weights: int, samples: int, shortcut: bool, candidates: int) -> dict[str, float]:
    """Seconds by part, and how many sites and options there were."""
    model = net(weights, shortcut)
    data = Samples.of(torch.randn(samples, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    spent: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent[name] = time.perf_counter() - start

    with part("sites"):
        sites, _ = find_sites(model, data[:2])
        workshop = Workshop(model, data[:2], data, sites, find("targets", "onnxruntime")())
    options = offered(sites)
    with part("options"):
        sensitivity = Sensitivity(workshop, data)
        places = [sensitivity.place(s, options[s.id], keep_option)[0] for s in sites]
    milliseconds = {name: 1e-7 * use.macs for name, use in workshop.program.weights.items()}
    timing = Timing({"float": milliseconds, "integer": {n: 0.4 * t for n, t in milliseconds.items()}}, {}, 0.01)
    found = Space(Fingerprint(architecture="", weights=""), tuple(places), layers_of(workshop.program.weights, places), timing, 2_000, 100, Recovery(steps=100))
    space = pruned(found)
    with part("solving"):
        solved = [solve(space, Budget(), level, Corrections()) for level in LEVELS]
    plans = list(dict.fromkeys(space.plan(c) for c in solved if c is not None))[:candidates]
    with part("candidates"):
        for plan in plans:
            workshop.target.run(workshop.lower(workshop.build(plan)), data)
    spent["candidates"] *= candidates / max(len(plans), 1)
    return {**spent, "total": sum(spent.values()), "sites_found": len(sites), "options_measured": sum(map(len, options.values()))}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    a, b = [math.log(v) for v in x], [math.log(max(v, 1e-9)) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)) / sum((p - mean_a) ** 2 for p in a)


def svg(panels: Sequence[tuple[str, Sequence[float], Mapping[str, Sequence[float]]]]) -> str:
    """Panels side by side, both axes logarithmic: ``(title, x, seconds by part)``."""
    pieces = []
    for number, (title, x, lines) in enumerate(panels):
        left = LEFT + number * (WIDTH + LEFT + 110)
        across = axis(x, title, "{:g}".format, log=True)
        up = axis([max(v, 1e-3) for ys in lines.values() for v in ys], "seconds", "{:g}".format, log=True)
        pieces.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
        pieces.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">{title}</text>')
        pieces.append(f'<text x="{left}" y="{TOP - 12}">seconds</text>')
        for tick in across.ticks:
            place = left + tick.at * WIDTH / 100
            pieces.append(
                f'<path d="M{place:.1f} {TOP + HEIGHT}v5" stroke="#999"/><text x="{place:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{tick.text}</text>'
            )
        for tick in up.ticks:
            place = TOP + HEIGHT - tick.at * HEIGHT / 100
            pieces.append(f'<path d="M{left - 5} {place:.1f}h5" stroke="#999"/><text x="{left - 9}" y="{place + 4:.1f}" text-anchor="end">{tick.text}</text>')
        above = -math.inf
        for name, ys in sorted(lines.items(), key=lambda line: -line[1][-1]):
            places = [(across.place(a), up.place(max(b, 1e-3))) for a, b in zip(x, ys, strict=True)]
            points = [(left + p * WIDTH / 100, TOP + HEIGHT - q * HEIGHT / 100) for p, q in places]
            path = "M" + "L".join(f"{p:.1f} {q:.1f}" for p, q in points)
            above = max(points[-1][1], above + LINE)  # of the name, clear of the one above it
            pieces.append(f'<path d="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="{3 if name == "total" else 1.5}"/>')
            pieces.append(f'<text x="{points[-1][0] + 6:.1f}" y="{above + 4:.1f}" fill="{COLOURS[name]}">{name} {exponent(x, ys):.2f}</text>')
    width = len(panels) * (WIDTH + LEFT + 110)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 60}" font-family="sans-serif" font-size="13" role="img" '
        f'aria-label="Seconds of the search; numbers beside the lines are exponents of growth, 1 is linear">{"".join(pieces)}</svg>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="20,50,100,200")
    parser.add_argument("--samples", default="64,128,256,512")
    parser.add_argument("--net", choices=("residual", "chain"), default="residual")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--scheduled", action="store_true", help="fewer samples where there are more options, as a job's schedule does")
    parser.add_argument("--out", type=Path, default=Path("build/growth"))
    options = parser.parse_args()
    weights, samples = ([int(v) for v in text.split(",")] for text in (options.weights, options.samples))
    torch.set_num_threads(1)
    search(weights[0], samples[0], options.net == "residual", 1)  # what is loaded once
    panels, rows = [], []
    for title, sizes in (
        ("weights", [(w, max(1, samples[0] * weights[0] // w) if options.scheduled else samples[0]) for w in weights]),
        ("calibration samples", [(weights[0], s) for s in samples]),
    ):
        print(f"{title:>20s}  sites  options  " + "".join(f"{p:>12s}" for p in (*PARTS, "total")))
        found = []
        for w, s in sizes:
            row = search(w, s, options.net == "residual", options.candidates)
            found.append(row)
            rows.append({"weights": w, "samples": s, **row})
            size = f"{w} ({s} samples)" if title == "weights" else str(s)
            print(
                f"{size:>20s}  {row['sites_found']:5.0f}  {row['options_measured']:7.0f}  " + "".join(f"{row[p]:12.2f}" for p in (*PARTS, "total")), flush=True
            )
        x = [float(w if title == "weights" else s) for w, s in sizes]
        if len(x) > 1:
            lines = {p: [r[p] for r in found] for p in ("total", *PARTS)}
            print(f"{'exponent':>20s}  {'':5s}  {'':7s}  " + "".join(f"{exponent(x, lines[p]):12.2f}" for p in (*PARTS, "total")))
            panels.append((title, x, lines))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(rows, indent=1))
    if panels:
        (options.out / "growth.svg").write_text(svg(panels))


if __name__ == "__main__":
    main()
