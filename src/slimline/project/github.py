"""GitHub's own ways to show findings: annotations on the lines of the project file, and one comment on the pull request."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimline.errors import UsageError
from slimline.project.gate import Finding

LEVELS = {"fail": "error", "inconclusive": "warning"}
PAGE = 100  # comments per request, the most that there are
TIMEOUT_SECONDS = 20


def workflow_commands(found: Sequence[Finding], file: Path) -> str:
    """Workflow commands: an error for what fails, a warning for what cannot be decided.

    Example:
        >>> f = Finding(artefact="net/onnxruntime/small", check="size", against="lock", outcome="fail", sentence="The file grew by 20 %.", line=7)
        >>> print(workflow_commands([f], Path("slimline.yaml")))
        ::error file=slimline.yaml,line=7,title=net/onnxruntime/small%3A size against the lock::The file grew by 20 %25.
    """
    lines = []
    for f in found:
        if f.outcome != "pass":
            title = _escaped(f"{f.artefact}: {f.title}", {":": "%3A", ",": "%2C"})
            lines.append(
                f"::{LEVELS[f.outcome]} file={_escaped(file.as_posix(), {':': '%3A', ',': '%2C'})},line={f.line},title={title}::{_escaped(f.sentence)}"
            )
    return "\n".join(lines)


def _escaped(text: str, more: Mapping[str, str] = {}) -> str:
    for plain, code in {"%": "%25", "\r": "%0D", "\n": "%0A", **more}.items():
        text = text.replace(plain, code)
    return text


def comment(body: str, marker: str, environment: Mapping[str, str]) -> str:
    """Write ``body`` into the pull request's comment that begins with ``marker``, or into a new one; returns its address.

    ``environment``: ``GITHUB_EVENT_PATH``, ``GITHUB_REPOSITORY``, ``GITHUB_TOKEN`` and ``GITHUB_API_URL``, as a workflow has them.
    Empty where the event is of no pull request.

    Raises:
        UsageError: something is missing there, or GitHub refuses.
    """
    missing = [n for n in ("GITHUB_EVENT_PATH", "GITHUB_REPOSITORY", "GITHUB_TOKEN") if not environment.get(n)]
    if missing:
        raise UsageError(f"--comment needs {', '.join(missing)} in the environment.", hint="It is for a workflow on pull requests; give the step GITHUB_TOKEN.")
    try:
        event = json.loads(Path(environment["GITHUB_EVENT_PATH"]).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"The event file {environment['GITHUB_EVENT_PATH']} cannot be read: {error}.", hint="It is written by GitHub.") from error
    number = event.get("pull_request", {}).get("number")
    if number is None:
        return ""
    base = f"{environment.get('GITHUB_API_URL') or 'https://api.github.com'}/repos/{environment['GITHUB_REPOSITORY']}/issues"
    token = environment["GITHUB_TOKEN"]
    page, own = 1, None
    while own is None:
        comments = _call("GET", f"{base}/{number}/comments?per_page={PAGE}&page={page}", token)
        own = next((c["id"] for c in comments if c["body"].startswith(marker)), None)
        if len(comments) < PAGE:
            break
        page += 1
    made = _call("PATCH", f"{base}/comments/{own}", token, body) if own is not None else _call("POST", f"{base}/{number}/comments", token, body)
    return str(made["html_url"])


def _call(method: str, url: str, token: str, body: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    data = None if body is None else json.dumps({"body": body}).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        hint = (
            "Give the job `permissions: pull-requests: write`; a pull request from a fork has no such token." if error.code in (401, 403, 404) else "Try again."
        )
        raise UsageError(f"GitHub answers {error.code} to {method} {url}.", hint=hint) from error
    except OSError as error:
        raise UsageError(f"GitHub cannot be reached at {url}: {error}.", hint="Check GITHUB_API_URL and the network.") from error
