"""Run an artefact's *file* in a fresh Python process: what a user's deployment will see.

The child knows nothing of how the artefact was made: it loads the file with the target's runner, feeds
it the inputs from a file and writes the outputs to another. Slimline is not imported there.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from slimline.core.contracts import Target
from slimline.core.interpreter import interpreter, variable
from slimline.core.samples import Samples
from slimline.errors import LoweringError, UsageError

CHILD = """
import json, resource, runpy, sys
import numpy as np
def peak():
    try:  # of this program alone; getrusage also remembers the process that it was forked from
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
request = json.load(sys.stdin)
run = runpy.run_path(request["runner"])["load"](request["model"], request["threads"])
inputs = {n: np.load(f, mmap_mode="r") for n, f in request["inputs"].items()}
count = len(next(iter(inputs.values())))
run({n: np.ascontiguousarray(a[:1]) for n, a in inputs.items()})
rss = peak()
parts = []
for start in range(0, count, request["batch"]):
    parts.append([np.array(o) for o in run({n: np.ascontiguousarray(a[start:start + request["batch"]]) for n, a in inputs.items()})])
for place, column in enumerate(zip(*parts)):
    np.save(f"{request['out']}/{place}.npy", np.concatenate(column))
with open(f"{request['out']}/answer.json", "w") as file:
    json.dump({"outputs": len(parts[0]), "rss_bytes": rss}, file)
"""


def run_fresh(
    target: Target, file: Path, names: tuple[str, ...], inputs: Samples, *, threads: int = 2, batch: int = 256
) -> tuple[tuple[torch.Tensor, ...], int]:
    """``(outputs, rss_bytes)`` of the file in a new process; ``names`` are the artefact's inputs in order.

    ``rss_bytes`` is the process's peak after one sample, the runtime's own code included.

    Raises:
        UsageError: the interpreter that the target's variable names cannot be started.
        LoweringError: the process failed; the message holds the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = dict(zip([n for n in names if n not in inputs.kwargs], inputs.args, strict=False)) | inputs.kwargs
        files = {}
        for place, (name, tensor) in enumerate(given.items()):
            files[name] = str(Path(folder, f"in_{place}.npy"))
            np.save(files[name], tensor.numpy())
        out = Path(folder, "out")
        out.mkdir()
        request = {"runner": str(target.runner), "model": str(file.resolve()), "inputs": files, "out": str(out), "threads": threads, "batch": batch}
        python = interpreter(target.name)
        try:
            done = subprocess.run([python, "-I", "-c", CHILD], input=json.dumps(request), capture_output=True, text=True, check=False)
        except OSError as error:
            raise UsageError(f"{variable(target.name)}={python} cannot be started: {error.strerror}.", hint="Give the path of a Python.") from error
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise LoweringError(f"The artefact {file.name} failed in a fresh process (exit {done.returncode}): {said[:300]}")
        answer = json.loads((out / "answer.json").read_text())
        outputs = tuple(torch.from_numpy(np.load(out / f"{i}.npy")) for i in range(answer["outputs"]))
    return outputs, int(answer["rss_bytes"])
