"""Time a .tflite file on the machine that this runs on: what `slimline devices calibrate` asks a device.

Copy it to the device, which needs NumPy and ai-edge-litert (or, with --micro, tflite-micro), and name it there:

    slimline devices calibrate raspberry-pi-5 --run "ssh pi python3 device_benchmark.py"

Any other program will do that reads the file from its standard input and prints the milliseconds of one call last;
for a microcontroller, one that flashes the file and listens to the serial port.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

SECONDS = 0.3


def litert(content: bytes) -> Callable[[], object]:
    """A call of the file in LiteRT, one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter.invoke  # type: ignore[no-any-return]


def micro(content: bytes) -> Callable[[], object]:
    """A call of the file in the micro interpreter's reference kernels."""
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=10 * len(content) + 2**20).invoke  # type: ignore[no-any-return]


def median_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call, after a warm-up; calls are timed in bursts of at least 0.2 ms."""
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    burst = max(1, int(2e-4 / max(time.perf_counter() - start, 1e-7)))
    taken: list[float] = []
    while sum(taken) * burst < SECONDS * 1e3 or len(taken) < 5:
        start = time.perf_counter()
        for _ in range(burst):
            call()
        taken.append((time.perf_counter() - start) * 1e3 / burst)
    return sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    content = sys.stdin.buffer.read()
    print(median_ms(micro(content) if "--micro" in sys.argv[1:] else litert(content)))
