"""``slimline ui`` on a real socket on loopback."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from slimline import cli
from slimline.errors import UsageError
from slimline.project.ui import Server
from slimline.report.runs import Run, front

HOSTILE = "</script><img src=x onerror=\"alert('1')\">"


@pytest.fixture
def folder(tmp_path: Path, put_run: Callable[..., Path]) -> Path:
    """Three runs of one model, one of another, one that is damaged, a secret beside them, and a link out."""
    runs = tmp_path / "runs"
    put_run(runs / "small", payload=b"a" * 4_000)
    put_run(runs / "deep" / "large", payload=b"b" * 12_000, decisions=())
    put_run(runs / "failed", payload=b"c" * 9_000, verdict="fail", target="openvino")
    put_run(runs / "other", model=HOSTILE, sentence=HOSTILE, not_checked=(HOSTILE,))
    put_run(runs / "damaged")
    (runs / "damaged" / "report.json").write_text("{}")
    (runs / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").write_text("secret")
    put_run(tmp_path / "outside", model="out of reach")
    (runs / "link").symlink_to(tmp_path / "outside")
    return runs


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    found = Server(folder)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def ask(server: Server, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def query(path: str, *pairs: tuple[str, str]) -> str:
    return f"{path}?{urlencode(pairs)}"


def test_the_overview_lists_the_runs_of_a_model_with_their_front(server: Server) -> None:
    status, _, page = ask(server, query("/", ("model", "digits (10,000 parameters, top1)")))
    assert status == 200 and '<h1 id="title">4 runs of 2 models</h1>' in page
    rows = re.findall(r'<a href="/run\?run=([^"]+)">.*?</tr>', page)
    assert set(rows) == {"small", "deep%2Flarge", "failed"}
    assert page.count("on-front") - page.count(".on-front") == 1 and "<code>damaged</code>" in page
    assert "out of reach" not in page  # links are not followed
    assert page.count('class="mark front"') + page.count('class="mark trial"') == 3 * 3 + 2  # three runs in three plots, and the legend


def test_two_runs_are_compared_layer_by_layer(server: Server) -> None:
    status, _, page = ask(server, query("/compare", ("run", "small"), ("run", "deep/large")))
    assert status == 200 and "3.0x larger" in page and "No layers are listed" in page
    assert page.count('class="cell bits-') == 2 and '<th scope="row">a.weight</th>' in page
    assert '<th scope="row">b.weight</th>' not in page  # kept on one side, not listed on the other: the same
    for wrong in ((), (("run", "small"),), (("run", "small"), ("run", "none")), (("run", "small"),) * 3):
        assert ask(server, query("/compare", *wrong))[0] == 400


def test_a_run_that_delivered_nothing_cannot_be_ticked(server: Server, folder: Path) -> None:
    file = folder / "failed" / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"compressed": None, "artefact": None, "drop": None, "certificate": None}))
    page = ask(server, query("/", ("model", "digits (10,000 parameters, top1)")))[2]
    assert 'value="small"' in page and 'href="/run?run=failed"' in page and 'value="failed"' not in page


def test_a_run_is_its_report_with_a_way_back(server: Server) -> None:
    status, _, page = ask(server, query("/run", ("run", "deep/large")))
    assert status == 200 and '<a href="/">All runs</a>' in page and "Not checked, and left alone" in page


def test_what_comes_from_a_report_stays_text(server: Server) -> None:
    for target in (
        "/",
        query("/run", ("run", "other")),
        query("/compare", ("run", "other"), ("run", "small")),
        query("/", ("model", HOSTILE)),
        "/" + HOSTILE.replace(" ", "%20"),
    ):
        page = ask(server, target)[2]
        assert "<img" not in page and page.count("</script>") == 1


TARGETS = (
    "/secret.txt", "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/small/model.onnx", "/small/report.json", "/run?run=..", "/run?run=../outside", "/run?run=link",
    "/run?run=/etc", "/run?run=small/../../outside", "/run?run=small%00", "/run", "/run?run=small&run=small", "/.slimline", "http://127.0.0.1/secret.txt",
)  # fmt: skip


def test_nothing_but_pages_of_found_runs_is_served(server: Server) -> None:
    for target in TARGETS:
        status, _, page = ask(server, target)
        assert (target, status) == (target, 404) and "secret" not in page.replace("secret.txt", "")


def test_only_reading_is_understood(server: Server, folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert (method, ask(server, "/", method)[0]) == (method, 501)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_every_answer_has_the_headers_and_the_script_is_the_one_that_they_allow(server: Server) -> None:
    for target in ("/", "/none", query("/run", ("run", "small"))):
        _, headers, page = ask(server, target)
        (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = headers["Content-Security-Policy"]
        assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, "/", "HEAD")[2] == ""


def test_another_host_name_is_refused(server: Server) -> None:
    """A page elsewhere cannot point its own name at this machine and read the reports."""
    assert ask(server, "/", Host="evil.example")[0] == 421
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_a_malformed_request_is_answered(server: Server) -> None:
    assert ask(server, "/run?" + "&".join(["run=a"] * 100))[0] == 400
    assert ask(server, "/", Host="[")[0] in (400, 421)
    assert ask(server, "/")[0] == 200


def test_a_changed_report_is_read_again_and_a_removed_run_goes(server: Server, folder: Path) -> None:
    ask(server, "/")
    file = folder / "small" / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sentence": "It was changed."}))
    assert "It was changed." in ask(server, query("/run", ("run", "small")))[2]
    file.unlink()
    assert ask(server, query("/run", ("run", "small")))[0] == 404


def test_the_front_is_what_no_other_run_beats(tmp_path: Path, put_run: Callable[..., Path]) -> None:
    from slimline.report.finished import Finished

    made = [Run(n, Finished.read(put_run(tmp_path / n, payload=b"x" * size)).report) for n, size in (("a", 4_000), ("b", 5_000), ("c", 4_000))]
    assert front(made) == {"a", "c"}  # equals do not beat each other


def test_it_listens_on_loopback_unless_asked_and_an_occupied_port_is_told(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert cli.main(["ui", str(folder), "--port", str(server.server_port)]) == 2 and "--port" in capsys.readouterr().err
    assert cli.main(["ui", str(folder / "none")]) == 2
    with pytest.raises(UsageError, match="There is no folder"):
        Server(folder / "none")


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path) -> None:
    from slimline.project.ui import Runs, answer

    status, page = answer(Runs(tmp_path), "/")
    assert status == 200 and "There is no finished run" in page


def test_it_listens_on_the_other_loopback_too(folder: Path) -> None:
    import socket

    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        found = Server(folder, "::1")
    except UsageError:
        pytest.skip("this machine has no IPv6 loopback")
    assert found.address == f"http://[::1]:{found.server_port}/"
    found.server_close()


MODEL = query("", ("model", "digits (10,000 parameters, top1)"))
PAGES = {
    "runs": MODEL,
    "hostile": "",
    "run": query("run", ("run", "small")),
    "compare": query("compare", ("run", "small"), ("run", "deep/large")),
    "different": query("compare", ("run", "other"), ("run", "small")),
}


@pytest.mark.parametrize("name", list(PAGES))
def test_every_page_fits_its_window_and_axe_finds_no_serious_fault(server: Server, browser: Any, axe: str, name: str, window: tuple[int, str]) -> None:
    assert browser.show(server.address + PAGES[name], *window) == []
    browser.screenshot(f"ui-{name}-{window[0]}-{window[1]}")
    assert browser.value("document.documentElement.className") == "js"  # the script ran under the policy
    assert browser.outside() == []
    assert browser.faults(axe) == []


def test_two_runs_are_ticked_and_the_comparison_is_asked_for(server: Server, browser: Any, window: tuple[int, str]) -> None:
    browser.show(server.address + MODEL, *window)
    asked = "[document.querySelector('form button').disabled, document.querySelector('[data-hint]').textContent]"
    told = ["Tick two runs.", "Tick one more.", "", "Two can be compared: untick the others."]
    for count, name in enumerate(("failed", "small", "deep/large")):
        assert browser.value(asked) == [count != 2, told[count]]
        browser.value(f"document.querySelector('input[value=\"{name}\"]').click()")
    assert browser.value(asked) == [True, told[3]]
    browser.value("document.querySelector('input[value=failed]').click()")
    assert browser.follow("document.querySelector('form button').click()") == []
    assert browser.value("location.pathname + [...new URLSearchParams(location.search)].sort()") == "/comparerun,deep/large,run,small"
    assert browser.value("document.querySelector('h1').textContent") == "Two runs side by side"


def test_a_newer_run_without_data_does_not_hide_where_the_original_stands(server: Server, folder: Path, put_run: Callable[..., Path]) -> None:
    put_run(folder / "blank", payload=b"d" * 5_000)
    file = folder / "blank" / "report.json"
    content = json.loads(file.read_text())
    for side in ("baseline", "compressed"):
        content[side]["quality"] = None
    file.write_text(json.dumps(content | {"drop": None, "certificate": None}))
    page = ask(server, query("/", ("model", "digits (10,000 parameters, top1)")))[2]
    assert "lost, points" in page and page.count('aria-label="original') >= 3
