"""What every test runs under (one thread per process, so that two workers do not fight for two cores; Keras on torch), and a browser for the pages."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KERAS_BACKEND", "torch")  # where Keras is installed at all

import pytest
import torch

torch.set_num_threads(1)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update")  # nothing but the page is asked for
WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
SCREENSHOTS = "SLIMLINE_SCREENSHOTS"  # names a folder that tests of pages leave pictures in, to be looked at
GRAVE = ("serious", "critical")  # of axe's four grades
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  for (let p = e; p; p = p.parentElement) if (p.matches(".quiet, .skip") || (p !== e && /auto|scroll/.test(getComputedStyle(p).overflowX))) return false;
  return box.width && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


class Browser:
    """A headless Chromium with one page, driven through its debugging pipe: JSON messages that end with a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = ("--headless", "--no-sandbox", "--disable-gpu", *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank")
        line = f"exec {shlex.join([program, *options])} 3<&{to_read} 4>&{to_write}"
        self._process = subprocess.Popen(["bash", "-c", line], pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session, self._events = b"", 0, "", list[dict[str, Any]]()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 16)
            assert more, "Chromium is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def show(self, address: str, width: int = 1280, scheme: str = "light") -> list[str]:
        """Open a page as a window of that width shows it; returns what the browser complained of."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        return self._loaded("Page.navigate", url=address)

    def follow(self, expression: str) -> list[str]:
        """Do what leads to another page, such as a click; returns what the browser complained of."""
        return self._loaded("Runtime.evaluate", expression=expression)

    def _loaded(self, method: str, **parameters: Any) -> list[str]:
        self._events.clear()
        self.call(method, **parameters)
        while not any(e.get("method") == "Page.loadEventFired" for e in self._events):
            self._events.append(self._next())
        told = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self._events if e.get("method") in told]

    def screenshot(self, name: str) -> None:
        """The page from top to bottom as ``NAME.png``, where a folder for it is named."""
        folder = os.environ.get(SCREENSHOTS)
        if folder:
            whole = self.call("Page.getLayoutMetrics")["cssContentSize"]
            picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**whole, "scale": 1})["data"]
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))

    def value(self, expression: str) -> Any:
        """Of JavaScript, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def outside(self) -> list[str]:
        """What reaches past the window's edges, and cannot be scrolled to where it stands."""
        found: list[str] = self.value(OUTSIDE)
        return found

    def faults(self, axe: str) -> list[str]:
        """Serious and critical faults of accessibility that axe finds, each with its elements; folded parts are opened first."""
        self.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        self.value(f"{axe}; null")
        found = self.value("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
        return [f"{v['id']}: {v['help']} {[n['html'][:200] for n in v['nodes']]}" for v in found if v["impact"] in GRAVE]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(timeout=20)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Skips where there is no Chromium."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None or shutil.which("bash") is None:
        pytest.skip("there is no Chromium")
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(params=WINDOWS, ids=lambda w: f"{w[0]}-{w[1]}")
def window(request: pytest.FixtureRequest) -> tuple[int, str]:
    """Width and colour scheme."""
    found: tuple[int, str] = request.param
    return found


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which pip has inside a package that otherwise wants a browser of its own; skips where it is not installed."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe is not installed (pip install --no-deps axe-playwright-python)")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
