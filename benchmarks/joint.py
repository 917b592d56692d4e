"""The joint search against the best single method in the same time, for three budgets.

    python benchmarks/joint.py path/to/resnet20_cifar10.py --time 10m --out build/joint
    python benchmarks/joint.py examples/digits/task.py --time 40s --singles static_int8,channel_prune

For each budget one run with all methods, and one for each method alone with as much time (what recovery trains, too). A single run competes if it keeps every
limit and its drop on the holdout samples is within the allowance; the best has the least of what is minimised. All artefacts of a budget are then
timed together, interleaved in one process. Runs that are there already, made by the same arguments, are not made again. Of the table's figures bytes are those of
the file and of its archive, milliseconds of the runtime, drops of the holdout, which no search saw.

A budget is written as ``slimline compress`` takes it, without the dashes: ``"minimize=latency max-drop=1%"``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slimline.core.budget import Budget, parse_bytes, parse_seconds
from slimline.core.contracts import Artifact
from slimline.core.progress import Silent
from slimline.core.registry import find, registered
from slimline.core.request import Request
from slimline.core.result import Report
from slimline.core.trial import Latency, Measurement
from slimline.errors import SlimlineError
from slimline.job import compress_request
from slimline.job.context import STATE
from slimline.sources.task_file import TaskFile

BUDGETS = ("minimize=latency max-drop=1%", "minimize=size max-drop=1%", "minimize=latency max-drop=1% max-size=14%")
JOINT, ORIGINAL = "all methods", "original"
TARGET = "onnxruntime"


@dataclass
class Run:
    """One run: what it gave, or why it gave nothing."""

    name: str
    report: Report | None
    folder: Path
    reason: str = ""

    def objective(self, budget: Budget, latency: Latency, base: Measurement) -> float:
        assert self.report is not None and self.report.compressed is not None
        return budget.objective(self.report.compressed.model_copy(update={"latency_ms": latency}), base)

    def keeps(self, budget: Budget) -> bool:
        """Every limit, and the observed drop its allowance."""
        r = self.report
        if r is None or r.compressed is None or r.drop is None:
            return False
        return r.drop.observed <= r.drop.allowed and not [v for v in budget.violations(r.compressed, r.baseline) if v.quantity != "drop"]


def budget_of(text: str, original_bytes: int) -> Budget:
    """A size in percent is of the original's file."""
    given = dict(part.split("=", 1) for part in text.split())
    options: dict[str, object] = {"minimize": given.pop("minimize", "latency"), "max_drop": given.pop("max-drop", "1%")}
    for name, field in (("max-size", "size_bytes"), ("max-download", "download_bytes")):
        if name in given:
            value = given.pop(name)
            options[field] = int(original_bytes * float(value[:-1]) / 100) if value.endswith("%") else parse_bytes(value)
    if given:
        raise SystemExit(f"{text}: {', '.join(given)} is not known here; known: minimize, max-drop, max-size, max-download.")
    return Budget.model_validate(options)


def run(source: TaskFile, budget: Budget, time: str, name: str, methods: Sequence[str], seed: int, folder: Path) -> Run:
    asked = {"budget": budget.model_dump(mode="json"), "time": time, "methods": list(methods), "seed": seed, "task": source.name}
    mark = folder / "asked.json"
    if not mark.exists() or json.loads(mark.read_text()) != asked:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            request = Request(
                budget=budget, seconds=parse_seconds(time), methods=tuple(methods), seed=seed, out=folder, model_name=source.name, started=clock.monotonic()
            )
            compress_request(source, request, Silent())
        except SlimlineError as error:
            return Run(name, None, folder, error.message.splitlines()[0])
        mark.write_text(json.dumps(asked))
    return Run(name, Report.model_validate_json((folder / "report.json").read_bytes()), folder)


def timed_together(source: TaskFile, runs: Sequence[Run], seconds: float) -> dict[str, Latency]:
    """Latencies of all artefacts and of the original, interleaved: those of the reports are of other minutes, and a shared machine is faster in one than in another."""
    target = find("targets", TARGET)()
    files = {ORIGINAL: runs[0].folder / STATE / "finalists" / "baseline.onnx", **{r.name: r.folder / "model.onnx" for r in runs}}
    artifacts = [target.opened(Artifact.read(TARGET, file, target.beside)) for file in files.values()]
    return dict(zip(files, target.latency(artifacts, source.example(), seconds=seconds), strict=True))


def line(r: Run, latency: Latency) -> str:
    assert r.report is not None and r.report.compressed is not None and r.report.drop is not None
    c, d = r.report.compressed, r.report.drop
    used = ", ".join(sorted({x.method for x in r.report.decisions} - {"keep"}))
    return f"{c.size_bytes:>10,}  {c.download_bytes:>10,}  {latency.median:8.4f}  {d.observed:+.4f} <= {d.upper_95:.4f}  {r.report.verdict:12s}  {used}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--time", default="10m")
    parser.add_argument("--budget", action="append", default=[], help=f"may be repeated; {' | '.join(BUDGETS)}")
    parser.add_argument("--singles", default="", help="methods that run alone, comma-separated; all but keep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timing", type=float, default=5.0, help="seconds of the latency measurement for each budget")
    parser.add_argument("--out", type=Path, default=Path("build/joint"))
    options = parser.parse_args()
    source = TaskFile.load(str(options.task))
    for split in ("train", "search", "holdout"):  # kept by the source: the first run alone would pay for it
        source.data(split)
    singles = [m for m in options.singles.split(",") if m] or [m for m in registered("methods") if m != "keep"]
    original_bytes = 0
    rows = []
    for number, text in enumerate(options.budget or BUDGETS):
        if "%" in text.partition("max-size=")[2] and not original_bytes:
            raise SystemExit("A size in percent needs a budget before it without one: the original's bytes are read from that run.")
        budget = budget_of(text, original_bytes)
        runs = []
        for name, methods in ((JOINT, ()), *((m, (m,)) for m in singles)):
            found = run(source, budget, options.time, name, methods, options.seed, options.out / str(number) / name.replace(" ", "_"))
            if found.report is not None:
                original_bytes = found.report.baseline.size_bytes
            runs.append(found)
        made = [r for r in runs if r.report is not None and r.report.compressed is not None and r.report.drop is not None]
        if not made or made[0].report is None:
            reasons = "; ".join(f"{r.name}: {r.reason or 'no artefact'}" for r in runs)
            raise SystemExit(f"{text}: no run gave an artefact that was tested: {reasons}")
        latencies = timed_together(source, made, options.timing)
        base = made[0].report.baseline.model_copy(update={"latency_ms": latencies[ORIGINAL]})
        print(f"\n{text}   (original: {base.size_bytes:,} bytes, {base.latency_ms.median:.4f} ms)")
        print("method              bytes     archive        ms   drop, its limit    verdict       used")
        for r in made:
            print(f"{r.name:14s} {line(r, latencies[r.name])}")
        for r in runs:
            if r not in made:
                print(f"{r.name:14s} {r.reason or 'no artefact'}")
        competing = [r for r in made if r.name != JOINT and r.keeps(budget)]
        joint = next((r for r in made if r.name == JOINT), None)
        best = min(competing, key=lambda r: r.objective(budget, latencies[r.name], base), default=None)
        if joint is not None and best is not None:
            a, b = (r.objective(budget, latencies[r.name], base) for r in (joint, best))
            print(
                f"joint / best single ({best.name}): {a / b:.3f} of what is minimised{'' if joint.keeps(budget) else '; the joint result breaks a limit'}",
                flush=True,
            )
        for r in made:
            assert r.report is not None and r.report.compressed is not None and r.report.drop is not None
            c, d = r.report.compressed, r.report.drop
            rows.append(
                {
                    "budget": text,
                    "method": r.name,
                    "size_bytes": c.size_bytes,
                    "download_bytes": c.download_bytes,
                    "latency_ms": latencies[r.name].median,
                    "drop": d.observed,
                    "drop_upper_95": d.upper_95,
                    "verdict": r.report.verdict,
                    "keeps": r.keeps(budget),
                    "best_single": r is best,
                }
            )
    (options.out / "joint.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
