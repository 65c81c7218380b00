"""Signed statements about audits: who says what of which file.

``keys.py``       private and public keys of signers, from PEM files
``envelope.py``   bytes in a signed envelope (DSSE), as a Sigstore bundle
``statement.py``  what is signed: an in-toto statement of an audit's verdict and of the files of its report
``verifying.py``  whether a file, its report and its statement belong together, and who signed that

Nothing here loads torch or needs a network. The library ``cryptography`` comes with the extra ``sign`` and is loaded
when a key is read.
"""

from sapper.attestations.keys import PublicKey, SigningKey, public_key, signing_key
from sapper.attestations.statement import ATTESTATION, Statement
from sapper.attestations.verifying import Verified, verify

__all__ = [
    "ATTESTATION",
    "PublicKey",
    "SigningKey",
    "Statement",
    "Verified",
    "public_key",
    "signing_key",
    "verify",
]
