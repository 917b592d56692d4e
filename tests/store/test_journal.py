from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slimline.errors import JournalError, OutputError
from slimline.store.journal import FILE, Journal

HEADER = {"model": {"weights": "a"}, "request": {"seed": 0, "methods": ["keep", "low_rank"]}}


def written(folder: Path, count: int = 3) -> Path:
    """The file of a journal with ``count`` trials."""
    with Journal.open(folder, HEADER) as journal:
        for i in range(count):
            journal.append("trial", {"n": i, "loss": 0.1 * i}, elapsed=1.5 * (i + 1))
    return folder / FILE


def resumed(folder: Path) -> Journal:
    return Journal.open(folder, HEADER, resume=True)


def test_events_are_read_back_in_order_with_the_seconds_spent(tmp_path: Path) -> None:
    written(tmp_path)
    with resumed(tmp_path) as journal:
        assert [e["n"] for e in journal.events("trial")] == [0, 1, 2]
        assert journal.last("trial") == {"n": 2, "loss": 0.2} and journal.last("schedule") is None
        assert journal.spent == 4.5
        journal.append("done", {}, elapsed=6.0)
    with resumed(tmp_path) as journal:
        assert [e["n"] for e in journal.events("trial")] == [0, 1, 2] and journal.last("done") == {} and journal.spent == 6.0


def test_an_event_is_on_the_disk_before_append_returns(tmp_path: Path) -> None:
    with Journal.open(tmp_path, HEADER) as journal:
        journal.append("trial", {"n": 0})
        assert len((tmp_path / FILE).read_bytes().splitlines()) == 2


def test_without_resume_it_starts_empty(tmp_path: Path) -> None:
    written(tmp_path)
    with Journal.open(tmp_path, {"job": "other"}) as journal:
        assert list(journal.events("trial")) == [] and journal.spent == 0


def test_cut_at_any_byte_it_goes_on_with_the_whole_lines(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    ends = [i + 1 for i, byte in enumerate(raw) if byte == ord("\n")]
    for cut in range(len(raw) + 1):
        (tmp_path / FILE).write_bytes(raw[:cut])
        with resumed(tmp_path) as journal:
            whole = max(sum(e <= cut for e in ends) - 1, 0)
            assert [e["n"] for e in journal.events("trial")] == list(range(whole))
            journal.append("trial", {"n": "new"})
        with resumed(tmp_path) as journal:
            assert [e["n"] for e in journal.events("trial")] == [*range(whole), "new"]


def test_damage_before_the_last_line_is_named(tmp_path: Path) -> None:
    file = written(tmp_path)
    raw = bytearray(file.read_bytes())
    second = raw.index(b"\n") + 15
    raw[second] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(JournalError, match=r"Line 2 of .*journal\.jsonl is damaged.*--force"):
        resumed(tmp_path)
    assert file.read_bytes() == bytes(raw), "and left as it is"


def test_other_arguments_are_named_with_the_way_out(tmp_path: Path) -> None:
    written(tmp_path)
    for other, name in (
        ({**HEADER, "request": {**HEADER["request"], "seed": 1}}, "seed"),
        ({**HEADER, "model": {"weights": "b"}}, "weights"),
        ({**HEADER, "task": "x"}, "task"),
        ({"model": HEADER["model"]}, "request"),
    ):
        with pytest.raises(JournalError, match=rf"other arguments \({name}\)\. .*--resume.*--force"):
            Journal.open(tmp_path, other, resume=True)
    with resumed(tmp_path) as journal:
        assert journal.spent == 4.5


def test_a_header_of_tuples_is_the_same_after_json(tmp_path: Path) -> None:
    with Journal.open(tmp_path, {"methods": ("a", "b")}):
        pass
    with Journal.open(tmp_path, {"methods": ("a", "b")}, resume=True) as journal:
        assert journal.spent == 0


def test_a_second_run_on_the_folder_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "out" / ".slimline"
    with Journal.open(folder, HEADER) as first:
        first.append("trial", {"n": 0})
        with pytest.raises(OutputError, match=f"Another run is writing to {tmp_path / 'out'}"):
            Journal.open(folder, HEADER)
        assert len((folder / FILE).read_bytes().splitlines()) == 2, "a refused run empties nothing"
    resumed(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_json_cannot_hold_is_refused_and_not_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path, HEADER) as journal:
        with pytest.raises(TypeError, match="PosixPath"):
            journal.append("trial", {"file": tmp_path})
        assert list(journal.events("trial")) == []
        assert len((tmp_path / FILE).read_bytes().splitlines()) == 1


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from slimline.store.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "with Journal.open(Path(sys.argv[1]), {'job': 1}) as journal:\n"
        "    journal.append('trial', {'n': 0})\n"
        "    try: journal.append('trial', {'n': 'x' * 1000})\n"
        "    except OSError as error: print(error.errno)\n"
        "    journal.append('trial', {'n': 1})\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) == errno.EFBIG, "a file size limit stands in for the disk's"
    with Journal.open(tmp_path, {"job": 1}, resume=True) as journal:
        assert [e["n"] for e in journal.events("trial")] == [0, 1]


def test_killed_while_writing_it_goes_on_and_the_lock_is_free(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from slimline.store.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1]), {'job': 1})\n"
        "n = 0\n"
        "while True:\n"
        "    journal.append('trial', {'n': n, 'text': 'x' * 5000}); n += 1\n"
        "    print(n, flush=True)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    said = [int(run.stdout.readline()) for _ in range(5)]
    os.kill(run.pid, signal.SIGKILL)
    said += [int(line) for line in run.stdout.read().split()]
    run.wait()
    with Journal.open(tmp_path, {"job": 1}, resume=True) as journal:
        numbers = [e["n"] for e in journal.events("trial")]
    assert numbers == list(range(len(numbers))) and len(numbers) >= said[-1], "what was said to be written is there"


def test_lines_are_json_after_their_checksum(tmp_path: Path) -> None:
    lines = written(tmp_path, 1).read_text().splitlines()
    kinds = [json.loads(line.partition(" ")[2])["kind"] for line in lines]
    assert kinds == ["header", "trial"]
