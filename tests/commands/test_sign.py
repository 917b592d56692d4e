from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimline import cli

pytestmark = pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="slimline[sign] is not installed")


def pair(folder: Path, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return pair(tmp_path)


@pytest.fixture
def signed(run: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the network shut: neither signing nor verifying may ask anyone."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert cli.main(["sign", str(run), "--key", str(keys[0])]) == 0
    return run


def verified(run: Path, key: Path) -> int:
    return cli.main(["verify", str(run), "--key", str(key)])


def test_what_was_signed_verifies_wherever_it_lies(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    assert verified(signed, keys[1]) == 0
    moved = signed.rename(tmp_path / "elsewhere")
    (moved / ".slimline" / "journal.jsonl").write_text("what stays at home is not signed")
    assert verified(moved, keys[1]) == 0
    assert {p.name for p in moved.iterdir()} == {
        ".slimline",
        "manifest.json",
        "model.onnx",
        "model.sig",
        "plan.json",
        "report.html",
        "report.json",
        "report.md",
    }


@pytest.mark.parametrize("name", ["model.onnx", "plan.json", "report.json", "report.md", "report.html", "manifest.json"])
@pytest.mark.parametrize("where", [0, -1])
def test_a_changed_byte_is_found(signed: Path, keys: tuple[Path, Path], name: str, where: int, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((signed / name).read_bytes())
    content[where] ^= 1
    (signed / name).write_bytes(content)
    assert verified(signed, keys[1]) == 3
    assert name in capsys.readouterr().err


def test_a_missing_and_an_added_file_are_found(signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (signed / "weights.bin").write_bytes(b"more")
    assert verified(signed, keys[1]) == 3 and "weights.bin" in capsys.readouterr().err
    (signed / "weights.bin").unlink()
    (signed / "plan.json").unlink()
    assert verified(signed, keys[1]) == 3 and "plan.json" in capsys.readouterr().err


def test_another_key_does_not_verify(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other, other_public = pair(tmp_path, "other")
    assert verified(signed, other_public) == 3
    (signed / "model.onnx").write_bytes(b"changed, and signed again by someone else")
    from slimline.trust.signing import sign

    sign(signed, other, signed / "model.sig")
    assert verified(signed, keys[1]) == 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"no json", b'{"verificationMaterial": {}}'])
def test_a_damaged_signature_does_not_verify(signed: Path, keys: tuple[Path, Path], damage: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (signed / "model.sig").write_bytes(damage)
    assert verified(signed, keys[1]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_any_flipped_bit_of_a_signature_is_found(signed: Path, keys: tuple[Path, Path]) -> None:
    import base64
    import json

    whole = json.loads((signed / "model.sig").read_text())
    for field in ("payload", "sig"):
        changed = json.loads(json.dumps(whole))
        holder = changed["dsseEnvelope"] if field == "payload" else changed["dsseEnvelope"]["signatures"][0]
        raw = bytearray(base64.b64decode(holder[field]))
        raw[len(raw) // 2] ^= 1
        holder[field] = base64.b64encode(raw).decode()
        (signed / "model.sig").write_text(json.dumps(changed))
        assert verified(signed, keys[1]) == 3, field


def test_links_are_not_signed(run: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "link").symlink_to(tmp_path)
    assert cli.main(["sign", str(run), "--key", str(keys[0])]) == 2
    assert "cannot be signed" in capsys.readouterr().err and not (run / "model.sig").exists()


def test_a_folder_that_changed_since_the_run_is_not_signed(run: Path, keys: tuple[Path, Path]) -> None:
    (run / "model.onnx").write_bytes(b"another")
    assert cli.main(["sign", str(run), "--key", str(keys[0])]) == 2


def test_a_key_with_a_password_needs_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = pair(tmp_path, "hidden", b"word")
    assert cli.main(["sign", str(run), "--key", str(private)]) == 2 and "password" in capsys.readouterr().err.lower()
    monkeypatch.setenv("SLIMLINE_KEY_PASSWORD", "wrong")
    assert cli.main(["sign", str(run), "--key", str(private)]) == 2
    monkeypatch.setenv("SLIMLINE_KEY_PASSWORD", "word")
    assert cli.main(["sign", str(run), "--key", str(private)]) == 0
    assert verified(run, public) == 0


@pytest.mark.parametrize("content", [None, b"no key"])
def test_what_is_no_key_is_said_with_how_to_make_one(run: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "bad.pem"
    if content is not None:
        key.write_bytes(content)
    assert cli.main(["sign", str(run), "--key", str(key)]) == 2
    assert "openssl ecparam" in capsys.readouterr().err


def test_a_signature_may_lie_elsewhere(run: Path, keys: tuple[Path, Path], tmp_path: Path, put_run: Callable[..., Path]) -> None:
    away = tmp_path / "away.sig"
    assert cli.main(["sign", str(run), "--key", str(keys[0]), "--signature", str(away)]) == 0
    assert away.is_file() and not (run / "model.sig").exists()
    assert cli.main(["verify", str(run), "--key", str(keys[1]), "--signature", str(away)]) == 0
    assert verified(run, keys[1]) == 2  # there is none in the folder
    assert cli.main(["verify", os.fspath(put_run(tmp_path / "b", payload=b"another")), "--key", str(keys[1]), "--signature", str(away)]) == 3
