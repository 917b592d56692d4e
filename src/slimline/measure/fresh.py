"""Run an artefact's *file* in a fresh Python process: what a user's deployment will see.

The child knows nothing of how the artefact was made: it loads the file with the runtime, feeds
it the inputs from a file and writes the outputs to another. It does not import torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from slimline.core.samples import Samples
from slimline.errors import LoweringError

CHILD = """
import json, resource, sys
import numpy as np
import onnxruntime
def peak():
    try:  # of this program alone; getrusage also remembers the process that it was forked from
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
request = json.load(sys.stdin)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = request["threads"]
options.log_severity_level = 4
session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
inputs = {n: np.load(f, mmap_mode="r") for n, f in request["inputs"].items()}
count = len(next(iter(inputs.values())))
first = {n: np.ascontiguousarray(a[:1]) for n, a in inputs.items()}
session.run(None, first)
rss = peak()
parts = []
for start in range(0, count, request["batch"]):
    parts.append(session.run(None, {n: np.ascontiguousarray(a[start:start + request["batch"]]) for n, a in inputs.items()}))
for place, column in enumerate(zip(*parts)):
    np.save(f"{request['out']}/{place}.npy", np.concatenate(column))
print(json.dumps({"outputs": len(parts[0]), "rss_bytes": rss}))
"""


def run_fresh(file: Path, names: tuple[str, ...], inputs: Samples, *, threads: int = 2, batch: int = 256) -> tuple[tuple[torch.Tensor, ...], int]:
    """``(outputs, rss_bytes)`` of the file in a new process; ``names`` are the artefact's inputs in order.

    ``rss_bytes`` is the process's peak after one sample, the runtime's own code included.

    Raises:
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
        request = {"model": str(file), "inputs": files, "out": str(out), "threads": threads, "batch": batch}
        done = subprocess.run([sys.executable, "-I", "-c", CHILD], input=json.dumps(request), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise LoweringError(f"The artefact {file.name} failed in a fresh process (exit {done.returncode}): {said[:300]}")
        answer = json.loads(done.stdout)
        outputs = tuple(torch.from_numpy(np.load(out / f"{i}.npy")) for i in range(answer["outputs"]))
    return outputs, int(answer["rss_bytes"])
