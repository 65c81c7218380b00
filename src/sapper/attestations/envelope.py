"""Bytes in a signed envelope: DSSE 1.0 in a Sigstore bundle 0.3, as OpenSSF model-signing writes it for a key.

    https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    https://docs.sigstore.dev/about/bundle

What is signed is not the payload alone but its length and type with it (PAE), so that nobody can pass it off as
something of another type. A bundle has one form here, byte for byte: what reads JSON more freely could see another
payload than we do, where a key stands twice, say.
"""

import json
from base64 import b64decode, b64encode
from typing import Any

from sapper.attestations.keys import PublicKey, SigningKey
from sapper.errors import SapperError
from sapper.files import as_text

PAYLOAD = "application/vnd.in-toto+json"
"""The type of what is signed."""

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"

ANEW = "get the signature anew from its signer; it must not be changed, not even its spaces"


def pae(payload: bytes) -> bytes:
    """What is signed for a payload: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def seal(payload: bytes, key: SigningKey) -> bytes:
    """A bundle that holds the payload and its signature; it says which key to verify with, and holds no key."""
    return _bundle(payload, key.sign(pae(payload)), key.public.fingerprint)


def unseal(bundle: bytes, key: PublicKey, where: str) -> bytes:
    """The payload of a bundle that the owner of the key signed.

    Raises ``SapperError`` for what is no such bundle, for one of another key, and where the signature does not hold.
    """
    try:
        content = json.loads(bundle)
        hint, envelope = content["verificationMaterial"]["publicKey"]["hint"], content["dsseEnvelope"]
        payload = b64decode(envelope["payload"], validate=True)
        signature = b64decode(envelope["signatures"][0]["sig"], validate=True)
        whole = isinstance(hint, str) and _bundle(payload, signature, hint) == bundle
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise SapperError("this is no signature of sapper's", where=where, remedy=ANEW) from error
    if not whole:
        raise SapperError("this signature is not as sapper wrote it", where=where, remedy=ANEW)
    if hint != key.fingerprint:
        what = f"this was signed with another key: {hint[:64]}, not {key.fingerprint}"
        raise SapperError(what, where=where, remedy="name the public key of its signer, if you trust that one")
    if not key.confirms(signature, pae(payload)):
        what = "the signature does not hold: the statement was changed, or another key signed it"
        raise SapperError(what, where=where, remedy="do not believe it; get it anew from its signer")
    return payload


def _bundle(payload: bytes, signature: bytes, hint: str) -> bytes:
    content: dict[str, Any] = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return as_text(content).encode()
