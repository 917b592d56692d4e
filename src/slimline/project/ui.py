"""The runs below a folder as web pages: read-only, from this machine only unless asked otherwise.

No path of a request is ever joined to a folder: a run is looked up by its name among those that were found, and pages are made from their
reports, escaped, so what lies in a folder is never served as it is.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pydantic

from slimline.core.result import Report
from slimline.errors import UsageError
from slimline.project import difference
from slimline.report import html, rows, runs
from slimline.report.pages import script_and_digest
from slimline.report.runs import Run

DEPTH = 6  # folders below the one that is served
MOST_BYTES = 2**26  # of a report
TIMEOUT = 10.0  # seconds for a request to arrive
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Runs:
    """What was found below ``folder``; a report is read again only when its file has changed."""

    folder: Path
    _read: dict[Path, tuple[tuple[int, int], Report | None]] = field(default_factory=dict)

    def find(self) -> tuple[list[Run], list[str]]:
        """All runs, newest first, and the names of folders whose report could not be read."""
        found: list[tuple[int, Run]] = []
        unread = []
        for file in _reports(self.folder, DEPTH):
            name = file.parent.relative_to(self.folder).as_posix()
            try:
                stat = file.stat()
            except OSError:
                continue  # it went away meanwhile
            known = self._read.get(file)
            if known is None or known[0] != (stat.st_mtime_ns, stat.st_size):
                known = ((stat.st_mtime_ns, stat.st_size), _report(file, stat.st_size))
                self._read[file] = known
            report = known[1]
            if report is None:
                unread.append(name)
            elif isinstance(report, Report):
                made = time.strftime("%Y-%m-%d %H:%M", time.localtime(stat.st_mtime))
                found.append((stat.st_mtime_ns, Run(self.folder.resolve().name if name == "." else name, report, made)))
        return [run for _, run in sorted(found, key=lambda f: (-f[0], f[1].name))], sorted(unread)


def _reports(folder: Path, depth: int) -> Iterator[Path]:
    """Files called ``report.json``, without following links or entering hidden folders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.name == "report.json" and entry.is_file(follow_symlinks=False):
            if (folder / "manifest.json").is_file():  # several targets have one over theirs, without a manifest
                yield folder / entry.name
        elif depth and entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _reports(Path(entry.path), depth - 1)


def _report(file: Path, size: int) -> Report | None:
    try:
        return Report.model_validate_json(file.read_bytes()) if size <= MOST_BYTES else None
    except (OSError, pydantic.ValidationError):
        return None


def answer(found: Runs, target: str) -> tuple[HTTPStatus, str]:
    """Status and page for a request's target: ``/``, ``/?model=``, ``/run?run=``, ``/compare?run=&run=``."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, max_num_fields=20)
    listed, unread = found.find()
    by_name = {r.name: r for r in listed}
    if parts.path == "/":
        return HTTPStatus.OK, runs.overview(found.folder.resolve().name, listed, query.get("model", [""])[0], unread)
    wanted = [by_name.get(name) for name in query.get("run", [])]
    if parts.path == "/run" and len(wanted) == 1 and wanted[0] is not None:
        return HTTPStatus.OK, html.render(wanted[0].report, home="/")
    if parts.path == "/compare":
        chosen = [w for w in wanted if w is not None and w.report.compressed is not None]
        if len(wanted) != 2 or len(chosen) != 2:
            return HTTPStatus.BAD_REQUEST, runs.message("Choose two runs", "Two runs that delivered something can be compared: go back and tick two.")
        return HTTPStatus.OK, _compared(*chosen)
    return HTTPStatus.NOT_FOUND, runs.message("There is nothing here", "The run may have been removed: go to all runs.")


def _compared(a: Run, b: Run) -> str:
    first, second = _result(a), _result(b)
    return runs.side_by_side(a, b, difference.figures(first, second), difference.decisions(first, second), difference.caveats(first, second))


def _result(run: Run) -> difference.Result:
    r = run.report
    assert r.compressed is not None
    machine = ", ".join(r.environment[k] for k in ("processor", "cores") if k in r.environment)
    return difference.Result(
        run.name, r.verdict, r.metric, r.compressed, r.drop, {d.site: rows.method_text(d) for d in r.decisions if d.method != "keep"}, machine
    )


class Answers(BaseHTTPRequestHandler):
    """GET and HEAD only; the server keeps nothing and writes nothing."""

    server: Server
    server_version = "Slimline"
    sys_version = ""
    timeout = TIMEOUT
    protocol_version = "HTTP/1.1"
    policy: ClassVar[str] = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

    def do_GET(self) -> None:
        try:
            if not self._meant_for_us():
                status, page = HTTPStatus.MISDIRECTED_REQUEST, runs.message("Not this server", "Open the address that `slimline ui` printed.")
            else:
                status, page = answer(self.server.runs, self.path)
        except ValueError:  # an address or a host that cannot be parsed
            status, page = HTTPStatus.BAD_REQUEST, runs.message("Not understood", "The address is malformed.")
        self._send(status, page)

    do_HEAD = do_GET

    def _meant_for_us(self) -> bool:
        """Whether the host that was asked for is ours: a page elsewhere may have pointed its own name at this machine."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return self.server.anyone or host in {*LOOPBACK, self.server.host}

    def _send(self, status: HTTPStatus, page: str) -> None:
        body = page.encode()
        self.send_response(status)
        headers = {
            "Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": f"{self.policy}; script-src 'sha256-{script_and_digest()[1]}'",
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal has the address."""


class Server(ThreadingHTTPServer):
    """Serves ``folder``. ``port`` 0 takes a free one.

    Raises:
        UsageError: there is no such folder, or the address is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}.", hint="Give a folder with runs below it.")
        self.runs, self.host = Runs(folder), host
        self.anyone = host not in LOOPBACK
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Answers)
        except OSError as error:
            raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}.", hint="Give another --port, or 0 for a free one.") from error

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}/"
