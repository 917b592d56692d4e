"""The GitHub action, the GitLab template and the pre-commit hook: their steps are run, with a fake event and a fake GitHub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import slimline
from slimline.errors import UsageError
from slimline.project import github
from slimline.project.lock import accept

ROOT = Path(__file__).parents[2]
SOURCE = str(Path(slimline.__file__).parents[1])


class GitHub:
    """Keeps comments, as GitHub's API does."""

    def __init__(self) -> None:
        self.comments: dict[int, str] = {1: "Nice work."}
        self.status = 200
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["Authorization"] == "Bearer secret"
                page = int(re.findall(r"[?&]page=(\d+)", self.path)[0])
                found = sorted(outer.comments.items())[(page - 1) * 100 : page * 100]
                self.answer([{"id": i, "body": b} for i, b in found])

            def do_POST(self) -> None:
                assert self.path == "/repos/o/r/issues/7/comments"
                number = max(outer.comments) + 1
                outer.comments[number] = self.body()
                self.answer({"html_url": f"http://there/{number}"})

            def do_PATCH(self) -> None:
                number = int(self.path.rpartition("/")[2])
                outer.comments[number] = self.body()
                self.answer({"html_url": f"http://there/{number}"})

            def body(self) -> str:
                return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

            def answer(self, content: Any) -> None:
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, folder: Path, event: dict[str, Any]) -> dict[str, str]:
        (folder / "event.json").write_text(json.dumps(event))
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {"GITHUB_EVENT_PATH": str(folder / "event.json"), "GITHUB_REPOSITORY": "o/r", "GITHUB_TOKEN": "secret", "GITHUB_API_URL": url}


@pytest.fixture
def hub() -> Iterator[GitHub]:
    found = GitHub()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_there_is_one_comment_and_it_is_kept_up_to_date(hub: GitHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path, {"pull_request": {"number": 7}})
    hub.comments |= {i: f"comment {i}" for i in range(2, 150)}  # more than a page
    assert github.comment("<!-- m -->\nfirst", "<!-- m -->", environment) == "http://there/150"
    assert github.comment("<!-- m -->\nsecond", "<!-- m -->", environment) == "http://there/150"
    assert hub.comments[150] == "<!-- m -->\nsecond" and len(hub.comments) == 150
    assert github.comment("x", "<!-- m -->", hub.environment(tmp_path, {"ref": "refs/heads/main"})) == ""


def test_what_stands_in_the_way_of_a_comment_is_said(hub: GitHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs GITHUB_EVENT_PATH"):
        github.comment("x", "m", {})
    hub.status = 403
    with pytest.raises(UsageError, match=r"answers 403.*pull-requests: write"):
        github.comment("x", "m", hub.environment(tmp_path, {"pull_request": {"number": 7}}))


def shell(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As a runner does: bash, stopping at the first error."""
    return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def runner(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``slimline`` is this tree's."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "slimline").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m slimline "$@"\n')
    (folder / "slimline").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}


def action_steps(inputs: dict[str, str], environment: dict[str, str]) -> list[tuple[str, subprocess.CompletedProcess[str]]]:
    """The shell steps of ``action.yml``, with its expressions filled in; after the first that fails, those that run always."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    values = {f"inputs.{n}": inputs.get(n, str(about["default"])) for n, about in action["inputs"].items()} | {"github.action_path": str(ROOT)}
    done: list[tuple[str, subprocess.CompletedProcess[str]]] = []
    for step in action["runs"]["steps"]:
        if "run" not in step or (step.get("if") == "inputs.install != ''" and not values["inputs.install"]):
            continue
        if any(d.returncode for _, d in done) and not step.get("if", "").startswith("always()"):
            continue
        assert "${{" not in step["run"], "an expression in a script is a way in for whoever writes it"
        own = {k: re.sub(r"\$\{\{ *(.*?) *\}\}", lambda m: values[m[1]], v) for k, v in step.get("env", {}).items()}
        done.append((step["name"], shell(step["run"], environment | own)))
    return done


def test_the_action_runs_checks_comments_and_fails_with_the_check(planted: Any, hub: GitHub, runner: dict[str, str], tmp_path: Path) -> None:
    planted.put()
    accept(planted.project, [planted.item])
    files = {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_ACTIONS": "true"}
    environment = runner | hub.environment(tmp_path, {"pull_request": {"number": 7}}) | files
    inputs = {"install": "", "token": "secret", "check-arguments": "--quick"}
    done = action_steps(inputs, environment)
    assert [(name, d.returncode) for name, d in done] == [("Run", 0), ("Check", 0)], done[-1][1].stderr
    assert "up to date, pass" in done[0][1].stdout and len(hub.comments) == 2 and "### Slimline pass" in hub.comments[2]
    planted.put(padding=31_000)
    done = action_steps(inputs, environment)
    assert [(name, d.returncode) for name, d in done] == [("Run", 0), ("Check", 3)]
    assert "::error file=slimline.yaml,line=6" in done[1][1].stdout
    assert len(hub.comments) == 2 and "### Slimline fail: 1 of" in hub.comments[2] and "The file grew by" in hub.comments[2]
    assert (tmp_path / "output").read_text().split() == ["status=0", "status=3"] and "### Slimline fail" in (tmp_path / "summary").read_text()
    assert {p.name for p in Path("slimline-check").iterdir()} == {"check.md", "check.xml", "check.sarif"}


def test_a_run_that_fails_ends_in_a_red_comment_that_says_why(planted: Any, hub: GitHub, runner: dict[str, str], tmp_path: Path) -> None:
    planted.put()
    accept(planted.project, [planted.item])
    files = {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    environment = runner | hub.environment(tmp_path, {"pull_request": {"number": 7}}) | files
    inputs = {"install": "", "token": "secret", "check-arguments": "--quick --allow-inconclusive"}
    # A run of its own refusal, though all that was made is up to date: the lock has no plan to replay.
    planted.project.lock.unlink()
    done = action_steps(inputs | {"run-arguments": "--replay"}, environment)
    assert [(name, d.returncode) for name, d in done] == [("Run", 2), ("Check", 3)] and "has no plan for" in done[0][1].stderr
    assert "### Slimline fail: 1 of 2" in hub.comments[2] and "slimline.lock has no plan for net/onnxruntime/small" in hub.comments[2]
    assert "Exit status 2." in hub.comments[2]
    # A mistake in the project file, which the check meets as well.
    Path("slimline.yaml").write_text("version: 2\n")
    assert [(name, d.returncode) for name, d in action_steps(inputs, environment)] == [("Run", 2), ("Check", 2)]
    assert len(hub.comments) == 2 and "### Slimline fail: 2 of 2" in hub.comments[2] and "slimline.yaml, line 1: version: Input should be 1." in hub.comments[2]
    assert "Input should be 1" in Path("slimline-check/check.xml").read_text() and "Input should be 1" in (tmp_path / "summary").read_text()
    # Whatever ends a run: here as if it were interrupted, and as a defect.
    for status in (1, 5, 130):
        fake = f'#!/bin/sh\n[ "$1" = run ] && echo "It broke." >&2 && exit {status}\nexec "{sys.executable}" -m slimline "$@"\n'
        (tmp_path / "bin" / "slimline").write_text(fake)
        done = action_steps(inputs, environment)
        assert [d.returncode for _, d in done] == [status, 2] and f"It broke. Exit status {status}." in hub.comments[2]


def test_what_was_made_is_kept_for_later_runs_also_of_a_red_job() -> None:
    steps = {s["uses"]: s for s in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"] if "uses" in s}
    restore, save = steps["actions/cache/restore@v4"], steps["actions/cache/save@v4"]
    assert save["if"].startswith("always()") and save["with"] == {"path": restore["with"]["path"], "key": "${{ steps.cache.outputs.cache-primary-key }}"}
    assert restore["id"] == "cache" and "github.run_attempt" in restore["with"]["key"]  # a key is never written again
    assert yaml.safe_load((ROOT / "integrations" / "gitlab.yml").read_text())[".slimline"]["cache"]["when"] == "always"


def test_the_gitlab_template_has_the_status_of_the_check(planted: Any, runner: dict[str, str]) -> None:
    job = yaml.safe_load((ROOT / "integrations" / "gitlab.yml").read_text())[".slimline"]
    variables = job["variables"] | {"SLIMLINE_INSTALL": "", "SLIMLINE_CHECK_ARGUMENTS": "--quick"}
    script = "\n".join([*job["before_script"], *job["script"]])
    planted.put()
    assert shell(script, runner | variables).returncode == 0
    assert Path(job["artifacts"]["reports"]["junit"]).is_file()
    planted.put(padding=60_000)
    assert shell(script, runner | variables).returncode == 3
    assert job["allow_failure"] == {"exit_codes": [4]}
    Path("task.py").write_text("def model(): raise ValueError('no such network')")
    done = shell(script, runner | variables)
    assert done.returncode == 3 and "no such network" in done.stderr and "Exit status 2." in Path(job["artifacts"]["reports"]["junit"]).read_text()


def test_the_hook_is_the_same_command_and_knows_what_is_out_of_date(planted: Any, runner: dict[str, str]) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    planted.put()
    assert shell(hook["entry"], runner).returncode == 0
    Path("task.py").write_text("# another\n")
    done = shell(hook["entry"], runner)
    assert done.returncode == 3 and "not up to date: changed: task.py" in done.stdout
    assert all(re.search(hook["files"], name) for name in ("slimline.yaml", "slimline.lock", "net/task.py", "weights.safetensors"))


@pytest.mark.parametrize(("schema", "file"), [
    ("vendor.github-actions", "action.yml"),
    ("vendor.github-workflows", "examples/ci/.github/workflows/slimline.yml"),
    ("vendor.gitlab-ci", "integrations/gitlab.yml"),
    ("vendor.gitlab-ci", "examples/ci/.gitlab-ci.yml"),
])  # fmt: skip
def test_the_yaml_is_what_the_published_schemas_say(schema: str, file: str) -> None:
    pytest.importorskip("check_jsonschema", reason="the published schemas are not installed (pip install check-jsonschema)")
    arguments = ["--builtin-schema", schema, *(["--data-transform", "gitlab-ci"] if "gitlab" in schema else []), str(ROOT / file)]
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_project_file_of_the_example_is_what_our_own_schema_says(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="the published schemas are not installed (pip install check-jsonschema)")
    schema = ["--schemafile", str(ROOT / "docs" / "slimline.schema.json")]
    good = ROOT / "examples" / "ci" / "slimline.yaml"
    bad = tmp_path / "slimline.yaml"
    bad.write_text(good.read_text().replace("20KB", "20 parsecs"))
    command = [sys.executable, "-m", "check_jsonschema", *schema]
    assert subprocess.run([*command, str(good)], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*command, str(bad)], capture_output=True, check=False).returncode == 1
