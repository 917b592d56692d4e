"""Signing a folder with an elliptic-curve key of one's own, and verifying it; nothing is asked of any server.

The signature is a Sigstore bundle (DSSE over an in-toto statement with the sha256 of every file) as the package ``model-signing`` makes it,
so its own command verifies it, too.

References:
    OpenSSF Model Signing (OMS) specification, https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimline.core.extras import require
from slimline.errors import SignatureMismatch, UsageError

UNSIGNED = ".slimline"  # the journal and the cache, which stay at home
CURVES = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"


def sign(directory: Path, key: Path, signature: Path, password: str | None = None) -> None:
    """Sign every file in ``directory`` but for the signature, ``.slimline`` and what belongs to git.

    ``key``: a private key as PEM, on the curve P-256, P-384 or P-521; ``password``: what it is encrypted with.

    Raises:
        UsageError: the package is not installed, the key cannot be used, or the folder holds links.
    """
    for package in ("model_signing", "OpenSSL"):
        require(package, "sign", "A signature")
    from model_signing import signing

    secret: Any = None if password is None else password.encode()  # the package says text, and its own library takes bytes
    with _usable(key, "private key"):
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    part = signature.with_name(f".{signature.name}.part")
    try:
        signer.set_hashing_config(_hashing(directory, signature, part)).sign(directory, part)
        part.replace(signature)
    except ValueError as error:
        raise UsageError(f"{directory} cannot be signed: {error}.", hint="Links are not signed: put the files there.") from error
    finally:
        part.unlink(missing_ok=True)


def verify(directory: Path, key: Path, signature: Path) -> None:
    """Check that the signature is of the key and that each file is as it was signed, with none missing and none added.

    ``key``: the public key as PEM, from where you trust it: never from the folder itself.

    Raises:
        SignatureMismatch: it is not so; the message names the files.
        UsageError: the package is not installed, the key cannot be used, or there is no signature.
    """
    for package in ("model_signing", "OpenSSL"):
        require(package, "sign", "A signature")
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    if not signature.is_file():
        raise UsageError(f"There is no signature {signature}.", hint="Make it with `slimline sign`, or name it with --signature.")
    with _usable(key, "public key"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    try:
        verifier.set_hashing_config(_hashing(directory, signature)).verify(directory, signature)
    except InvalidSignature as error:
        raise SignatureMismatch(f"{signature} was changed after it was made, or another key made it.", hint="Do not use these files.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # what a damaged or foreign bundle raises in its reader
        raise SignatureMismatch(f"{directory} is not what was signed with that key: {str(error)[:2000]}", hint="Do not use these files.") from error


def _hashing(directory: Path, *own: Path) -> Any:
    """What is hashed: all but our own signature (its part while it is written), the journal, and what belongs to git."""
    from model_signing import hashing

    inside = [p.resolve().relative_to(directory.resolve()) for p in own if p.resolve().is_relative_to(directory.resolve())]
    return hashing.Config().set_ignored_paths(paths=[UNSIGNED, *inside])


@contextlib.contextmanager
def _usable(key: Path, what: str) -> Iterator[None]:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except OSError as error:
        raise UsageError(f"The {what} {key} cannot be read: {error.strerror}.", hint=f"Make a pair: {CURVES}") from error
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{key} cannot be used as {what}: {error}",
            hint=f"It must be a PEM file on the curve P-256, P-384 or P-521, with its password if it has one. Make a pair: {CURVES}",
        ) from error
