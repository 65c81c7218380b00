"""Keys of signers, as files, and bundles that somebody took apart and put together again."""

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="signatures need the extra sign")

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def write_keys(folder: Path, name: str, curve: ec.EllipticCurve | None = None, passphrase: str = "") -> Path:
    """A pair of keys, ``NAME.pem`` and ``NAME.pub``; the private one's place."""
    return write_pair(ec.generate_private_key(curve or ec.SECP256R1()), folder, name, passphrase)


def write_pair(key: Any, folder: Path, name: str, passphrase: str = "") -> Path:
    """The same with a key of any kind."""
    hidden = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    return folder / f"{name}.pem"


def payload_of(bundle: bytes) -> bytes:
    """What was signed."""
    return b64decode(json.loads(bundle)["dsseEnvelope"]["payload"])


def with_payload(bundle: bytes, payload: bytes) -> bytes:
    """The bundle with another payload under the same signature, in the form that sapper writes."""
    content = json.loads(bundle)
    content["dsseEnvelope"]["payload"] = b64encode(payload).decode()
    return (json.dumps(content, indent=1) + "\n").encode()
