"""Keys of signers: elliptic curves in PEM files, as ``openssl`` makes them and OpenSSF model-signing takes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sapper.errors import SapperError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""Curves (P-256, P-384, P-521), and the hash that each signs with; the choice of Sigstore and of model-signing."""

LARGEST = 64 * 2**10
"""Bytes of a key's file."""

MAKE = "make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -out KEY.pem"
TAKE_OUT = "take the public key out of the private one: openssl pkey -in KEY.pem -pubout -out KEY.pub"


@dataclass(frozen=True)
class PublicKey:
    """A key that confirms signatures."""

    key: "ec.EllipticCurvePublicKey" = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its PEM text in hexadecimal: what ``sha256sum`` says of the file that ``openssl`` writes."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return sha256(self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def confirms(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of the private key signed the message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self.key.verify(signature, message, ec.ECDSA(getattr(hashes, CURVES[self.key.curve.name])()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key in memory; it shows up in no text and is written nowhere."""

    key: "ec.EllipticCurvePrivateKey" = field(repr=False)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        """The ECDSA signature of the message, in DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self.key.sign(message, ec.ECDSA(getattr(hashes, CURVES[self.key.curve.name])()))


def signing_key(path: str | Path, passphrase: str | Callable[[], str] | None = None) -> SigningKey:
    """The private key in a PEM file, on one of ``CURVES``.

    ``passphrase`` of an encrypted one, or what asks for it; it is asked only where it is needed. Raises ``SapperError``
    without the extra ``sign``, for another kind of key, for a wrong passphrase or none.
    """
    check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, where = _content(Path(path)), str(path)
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            given = passphrase() if callable(passphrase) else passphrase
            if not given:
                raise SapperError("this key is encrypted", where=where, remedy="give its passphrase") from None
            try:
                key = load_pem_private_key(content, given.encode(errors="surrogateescape"))
            except ValueError as error:
                what = "the passphrase does not open this key"
                raise SapperError(what, where=where, remedy="give the one it was encrypted with") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "this is a public key" if b"-----BEGIN PUBLIC KEY" in content else "this is no private key in PEM"
        raise SapperError(what, where=where, remedy=f"name a private key, or {MAKE}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        _refuse(where)
    return SigningKey(key)


def public_key(path: str | Path) -> PublicKey:
    """The public key in a PEM file, on one of ``CURVES``.

    Raises ``SapperError`` without the extra ``sign``, and for what is no such key, such as a private one.
    """
    check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content, where = _content(Path(path)), str(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        private = b"PRIVATE KEY-----" in content
        what = "this is a private key, which only the signer needs" if private else "this is no public key in PEM"
        remedy = TAKE_OUT if private else "name the signer's public key, a text that begins with BEGIN PUBLIC KEY"
        raise SapperError(what, where=where, remedy=remedy) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        _refuse(where)
    return PublicKey(key)


def check_installed() -> None:
    """Raises ``SapperError`` without the library that signs."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        what, remedy = "signatures need the library cryptography", "install it: pip install 'sapper[sign]'"
        raise SapperError(what, where="the extra sign is not installed", remedy=remedy) from error


def _content(path: Path) -> bytes:
    """What is in a key's file; it may be a pipe."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        said = (isinstance(error, OSError) and error.strerror) or error
        remedy = "name a key in PEM that is there and that you may read"
        raise SapperError(f"no key can be read: {said}", where=str(path), remedy=remedy) from error


def _refuse(where: str) -> NoReturn:
    raise SapperError("this is a key of another kind than P-256, P-384 and P-521", where=where, remedy=MAKE)
