"""Kill a compression at random moments, resume it, and compare the plan with the uninterrupted run's.

    python benchmarks/resume.py --kills 10 --time 40s

Each compression begins with the uninterrupted one's schedule (the beginning of its journal, and how long candidates and finalists are trained, as if that had taken no time): how many samples, candidates and steps
there are follows from how fast the machine is, and another run may be given others. Prints one line per kill: when it came, what the journal held, and whether the plans are equal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

JOURNAL = Path(".slimline", "journal.jsonl")
TASK = Path(__file__).resolve().parent.parent / "examples" / "digits" / "task.py"


def command(out: Path, seconds: str, *more: str) -> list[str]:
    options = ["--max-drop", "2%", "--minimize", "size", "--time", seconds, "--out", str(out), "--quiet", *more]
    return [sys.executable, "-m", "slimline", "compress", str(TASK), *options]


def at_once(line: str) -> str:
    """A line of the journal, as if it had been written at the start."""
    event = {**json.loads(line.split(" ", 1)[1]), "elapsed": 0.0}
    text = json.dumps(event, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def plan_of(out: Path) -> object:
    return json.loads((out / "plan.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--time", default="40s", help="of each compression")
    parser.add_argument("--out", type=Path, default=Path("build/resume"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    whole = given.out / "whole"
    start = time.monotonic()
    subprocess.run(command(whole, given.time), check=False)
    length = time.monotonic() - start
    expected = plan_of(whole)
    lines = (whole / JOURNAL).read_text().splitlines(keepends=True)
    scheduled = next(n for n, line in enumerate(lines) if '"kind":"schedule"' in line)
    kept = [*lines[: 1 + scheduled], *(line for line in lines if '"kind":"recovery"' in line or '"kind":"tuning"' in line)]
    beginning = "".join(map(at_once, kept))
    print(f"uninterrupted: {length:.0f} s")
    moments = random.Random(given.seed)
    equal = 0
    for number in range(given.kills):
        out = given.out / f"kill_{number}"
        at = moments.uniform(0.05, 0.95) * length
        (out / JOURNAL).parent.mkdir(parents=True, mode=0o700)
        (out / JOURNAL).write_text(beginning)
        process = subprocess.Popen(command(out, given.time, "--resume"))
        try:
            process.wait(at)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        events = len((out / JOURNAL).read_text().splitlines())
        resumed = subprocess.run(command(out, given.time, "--resume"), check=False)
        same = (out / "plan.json").exists() and plan_of(out) == expected
        equal += same
        print(
            f"killed after {at:5.1f} s with {events:2d} events: exit {resumed.returncode} after --resume, plan {'equal' if same else 'DIFFERENT'}", flush=True
        )
    print(f"{equal} of {given.kills} equal")


if __name__ == "__main__":
    main()
