"""How long it takes to find every place where a decision can be taken, and which part of it the time goes to.

    python benchmarks/find_sites.py path/to/efficientnet_lite0.py --repeat 3

Prints the median wall clock of ``find_sites``, how many sites and refusals it gave, and a digest of them, by which
two versions can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from pathlib import Path

from slimline.model.sites import find_sites
from slimline.sources.dispatch import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    for path in given.task:
        source = open_source(str(path))
        model, example = source.model(), source.example()
        seconds: list[float] = []
        for _ in range(given.repeat):
            start = time.perf_counter()
            sites, refusals = find_sites(model, example)
            seconds.append(time.perf_counter() - start)
        text = "\n".join(item.model_dump_json() for item in (*sites, *refusals))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        each = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{path.stem}: {statistics.median(seconds):.2f} s (median of {each}), {len(sites)} sites, {len(refusals)} refusals, digest {digest}")


if __name__ == "__main__":
    main()
