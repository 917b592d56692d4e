"""Foreign files are parsed in a child process with memory and time limits that never imports torch.

Whatever happens there, here it is a result or a ``ModelError``: a crash in native code, a file
that makes the parser eat memory, and one that keeps it busy for ever included.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slimline.errors import ModelError, SlimlineError

LEAST_MEMORY = 2**30
MEMORY_FACTOR = 4
CPU_SECONDS = 8  # for a small file; the imports take one of them
BYTES_PER_SECOND = 25_000_000  # what a file buys beyond that
MOST_SECONDS = 600  # for data beside the file
MORE = 2  # seconds that a child may wait for a disk; those in which other programs have the processor do not count
TICK = 0.25
STARTED = "import sys; sys.path.insert(0, sys.argv[1]); from slimline.sources._child import serve; serve()"
DAMAGED = "The file is damaged, or no such model: make it again with the tool that it came from."


def parse(function: str, path: Path, *, memory: int = LEAST_MEMORY, seconds: int = CPU_SECONDS, **request: Any) -> dict[str, Any]:
    """What ``function`` (``module:name``) gives for the file, computed in a child process.

    The child may use the larger of ``memory`` (1 GB) and four times the file's size, and ``seconds`` of processor time and more for a large file.

    Raises:
        ModelError: there is no such file, the function refused it, or the child ended without a result.
    """
    nbytes = regular(path)
    seconds += nbytes // BYTES_PER_SECOND
    asked = {**request, "function": function, "path": str(path.absolute()), "seconds": seconds, "bytes": max(memory, MEMORY_FACTOR * nbytes)}
    root = str(Path(__file__).resolve().parents[2])
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = _ended([sys.executable, "-I", "-B", "-c", STARTED, root], json.dumps(asked).encode(), environment, seconds + MORE)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path} kept its parser waiting for more than {seconds + MORE} s.", hint=DAMAGED) from None
    try:
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
    except (ValueError, AssertionError):
        raise ModelError(f"{path} ({nbytes:,} bytes) cannot be read: {_end(done, seconds)}.", hint=DAMAGED) from None
    if "error" in answer:
        raise ModelError(f"{path}: {answer['error']}", hint=str(answer.get("hint", "")))
    return answer


def _ended(command: list[str], given: bytes, environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    """What the command leaves behind. A parser that neither works nor ends is ended after ``seconds``.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        left: bytes | None = given
        lasted, before = 0.0, time.monotonic()
        try:
            while True:
                try:
                    output, errors = child.communicate(left, timeout=TICK)
                    return subprocess.CompletedProcess(command, child.returncode, output, errors)
                except subprocess.TimeoutExpired:
                    left, now = None, time.monotonic()
                    lasted, before = lasted + min(now - before, 2 * TICK), now  # longer only where this process was stopped, too
                    if lasted - _queued(child.pid) > seconds:
                        raise
        except BaseException:
            child.kill()
            raise


def _queued(pid: int) -> float:
    """Seconds that a process was ready to run and other programs had the processor; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def regular(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        ModelError: there is none, or it is a folder, a device or a pipe.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be opened: {error.strerror}.", hint="Check the path.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}.", hint="Give a model file.")
    return found.st_size


def _end(done: subprocess.CompletedProcess[bytes], seconds: int) -> str:
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"its parser was stopped after {seconds} s of processor time, or for want of memory"
    if done.returncode < 0:
        return f"its parser crashed ({signal.Signals(-done.returncode).name})"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"its parser ended with status {done.returncode}{': ' + said[-1][:200] if said else ''}"


def more_time(nbytes: int) -> None:
    """In the child: data that lie beside the file, once they have been checked, buy time as its own bytes do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_CPU, (min(soft + nbytes // BYTES_PER_SECOND, hard), hard))


def serve() -> None:
    """The child: reads a request, sets its own limits, answers with JSON on what was standard output."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (request["bytes"], request["bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not mix with the answer
    answer: dict[str, Any]
    try:
        module, _, name = request.pop("function").partition(":")
        answer = getattr(importlib.import_module(module), name)(request)
    except SlimlineError as error:
        answer = {"error": error.message, "hint": error.hint}
    except MemoryError:
        answer = {"error": f"reading it takes more than {request['bytes']:,} bytes of memory.", "hint": DAMAGED}
    except RecursionError:
        answer = {"error": "it is nested too deeply.", "hint": DAMAGED}
    except Exception as error:  # noqa: BLE001 - a parser raises anything on damaged files; the parent makes it a ModelError
        answer = {"error": f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}.", "hint": DAMAGED}
    json.dump(answer, output)
    output.close()
