"""Keys, envelopes and statements: against other people's programs, by hand, and with everything changed that can be."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="signatures need the extra sign")

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_public_key

import sapper as face
from sapper import datasets, encoders
from sapper.attestations import ATTESTATION, SigningKey, public_key, signing_key, verify
from sapper.attestations.envelope import pae, seal, unseal
from sapper.attestations.statement import audited, stated
from sapper.attestations.verifying import check_attestable
from sapper.audits.calibration import Bag, Key, write_bag
from sapper.audits.families import Family, FamilyBag, write_families
from sapper.audits.found import AuditReport
from sapper.defenses.budgets import BUDGETS
from sapper.errors import SapperError
from sapper.files import sha256
from sapper.report.audit_files import write_audit
from sapper.running import Run
from tests.micro import write_data
from tests.signers import payload_of, with_payload, write_keys, write_pair

REPORT = {"audit.html", "audit.json", "audit.sarif", "audit.cdx.json", "audit.md", "triggers.safetensors"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditReport]:
    """An encoder's file, its signed audit in ``audit``, and keys: the signer's, ``mine``, and another's."""
    folder = tmp_path_factory.mktemp("signed")
    write_data(folder)
    path = folder / "subject.safetensors"
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16)
    encoders.save(subject, path)
    photos = datasets.load(f"{folder}/photos", "train", size=16)
    key = Key.of(subject, photos, BUDGETS["quick"])
    bag = Bag(name="ordinary", key=key, pretraining="made up", images="photos", scores={"multi_prior": [1e6] * 40})
    write_bag(bag, folder / "ordinary.json")
    mine = write_keys(folder, "mine")
    write_keys(folder, "another")
    bags, run = [folder / "ordinary.json"], Run(seed=3)
    report = face.audit(path, photos, bags=bags, out=folder / "audit", sign=mine, surroundings=run)
    return folder, report


@pytest.fixture
def place(made: tuple[Path, AuditReport]) -> Path:
    return made[0]


@pytest.fixture
def report(made: tuple[Path, AuditReport]) -> AuditReport:
    return made[1]


@pytest.fixture
def bundle(place: Path) -> bytes:
    return (place / "audit" / ATTESTATION).read_bytes()


def verified(place: Path, **other: Any) -> face.Verified:
    """The audit of the place, verified with its signer's key."""
    given: dict[str, Any] = {"key": place / "mine.pub", "report": place / "audit"}
    return verify(other.pop("file", place / "subject.safetensors"), **given | other)


# The statement


def test_the_statement_by_hand(place: Path, report: AuditReport, bundle: bytes) -> None:
    """Everything that is signed, and nothing else: read with json and hashlib alone."""
    statement = json.loads(payload_of(bundle))
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:sapper:audit:v1"
    digest = hashlib.sha256((place / "subject.safetensors").read_bytes()).hexdigest()
    assert statement["subject"] == [{"name": "subject.safetensors", "digest": {"sha256": digest}}]
    told = statement["predicate"]
    audit = json.loads((place / "audit" / "audit.json").read_text())
    for name in ("verdict", "reason", "p_value", "false_alarm_bound", "budget", "seed", "number_format"):
        assert told.pop(name) == audit[name] == getattr(report, name)
    leading = audit["detectors"][0]
    assert (told.pop("detector"), told.pop("score"), told.pop("threshold")) == tuple(
        leading[name] for name in ("method", "score", "threshold")
    )
    assert told.pop("encoder") == {
        name: audit["encoder"][name] for name in ("architecture", "input_size", "mean", "std")
    } | {"options": {}}
    assert told.pop("images") == {name: audit["images"][name] for name in ("name", "split", "n", "sha256")}
    bag = hashlib.sha256((place / "ordinary.json").read_bytes()).hexdigest()
    assert told.pop("bags") == [{"name": "ordinary", "n": 40, "sha256": bag}]
    files = {each["name"]: each["digest"] for each in told.pop("report")}
    assert files == {
        name: {"sha256": hashlib.sha256((place / "audit" / name).read_bytes()).hexdigest()} for name in REPORT
    }
    age = datetime.now(UTC) - datetime.strptime(told.pop("time"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(0) <= age < timedelta(hours=1)
    assert told == {"families": None, "repair": None, "sapper": face.__version__}


def test_families_that_decided_are_in_the_statement(report: AuditReport, tmp_path: Path) -> None:
    known = [Family(name=f"family {i}", about="toys", scores=[0.0]) for i in range(19)]
    bag = FamilyBag(name="others", detector="twins", parameters={}, images=8, families=known)
    write_families(bag, tmp_path / "others.json")
    told = stated(replace(report, families=bag), audited(report.encoder), {}, {"audit.json": b"{}"}, None).predicate
    assert told.families is not None
    assert (told.families.name, told.families.n) == ("others", 19)
    assert told.families.sha256 == hashlib.sha256((tmp_path / "others.json").read_bytes()).hexdigest()


def test_the_envelope_by_hand(place: Path, bundle: bytes) -> None:
    """The bundle has a signature of DSSE's encoding, and the fingerprint that sha256sum gives of the public key."""
    content = json.loads(bundle)
    envelope = content["dsseEnvelope"]
    (signed,) = envelope["signatures"]
    payload = b64decode(envelope["payload"])
    message = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    public = (place / "mine.pub").read_bytes()
    key: Any = load_pem_public_key(public)
    key.verify(b64decode(signed["sig"]), message, ec.ECDSA(hashes.SHA256()))
    assert content["verificationMaterial"]["publicKey"]["hint"] == hashlib.sha256(public).hexdigest()
    assert verified(place).key == hashlib.sha256(public).hexdigest()


def test_in_totos_own_library_takes_the_statement(bundle: bytes) -> None:
    statements = pytest.importorskip("in_toto_attestation.v1.statement", reason="comes with model-signing, in dev")
    from google.protobuf import json_format

    message = json_format.Parse(payload_of(bundle), statements.spb.Statement())
    statements.Statement.copy_from_pb(message).validate()


def test_model_signing_confirms_the_signature_and_does_not_take_it_for_its_own(place: Path) -> None:
    """An audit may say that a file is backdoored: nobody may take its signature for a recommendation."""
    signing = pytest.importorskip("model_signing._signing.sign_ec_key", reason="other people's verifier, in dev")
    from model_signing import verifying

    verifier, path = signing.Verifier(place / "mine.pub"), place / "audit" / ATTESTATION
    read = signing.sigstore_pb.Signature.read(path)
    assert verifier._verify_signed_content(read) == ("application/vnd.in-toto+json", payload_of(path.read_bytes()))
    config = verifying.Config().use_elliptic_key_verifier(public_key=place / "mine.pub")
    with pytest.raises(ValueError, match="Predicate type mismatch"):
        config.verify(place / "subject.safetensors", path)


@settings(deadline=None)  # the first time, a library is loaded
@given(payload=st.binary(max_size=200))
def test_the_encoding_that_is_signed_is_that_of_securesystemslib(payload: bytes) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse", reason="comes with model-signing, in dev")
    assert pae(payload) == dsse.Envelope(payload, "application/vnd.in-toto+json", {}).pae()


def test_openssl_alone_can_check_it(place: Path, bundle: bytes, tmp_path: Path) -> None:
    """As docs/signing.md shows; and it signs with keys that openssl made."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")

    def openssl(*words: str | Path) -> str:
        said = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, cwd=tmp_path, check=False)
        return said.stdout + said.stderr

    (tmp_path / "statement").write_bytes(pae(payload_of(bundle)))
    signature = json.loads(bundle)["dsseEnvelope"]["signatures"][0]["sig"]
    (tmp_path / "signature").write_bytes(b64decode(signature))
    check = ("dgst", "-sha256", "-verify", place / "mine.pub", "-signature", "signature", "statement")
    assert "Verified OK" in openssl(*check)
    (tmp_path / "statement").write_bytes(pae(payload_of(bundle) + b" "))
    assert "Verified OK" not in openssl(*check)
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", "old.pem")  # with its parameters before the key
    make = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    openssl(*make, "-aes-256-cbc", "-pass", "pass:word", "-out", "new.pem")
    for name in ("old", "new"):
        openssl("pkey", "-in", f"{name}.pem", "-passin", "pass:word", "-pubout", "-out", f"{name}.pub")
        key, public = signing_key(tmp_path / f"{name}.pem", "word"), public_key(tmp_path / f"{name}.pub")
        assert key.public.fingerprint == public.fingerprint == sha256(tmp_path / f"{name}.pub")
        assert public.confirms(key.sign(b"text"), b"text")


# What is changed is found


@pytest.fixture
def restored(place: Path) -> Iterator[list[Path]]:
    """All that belongs together; as it was, afterwards."""
    paths = [place / "subject.safetensors", *(place / "audit" / name for name in sorted({*REPORT, ATTESTATION}))]
    before = {path: path.read_bytes() for path in paths}
    yield paths
    for path, content in before.items():
        path.write_bytes(content)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_file_statement_or_report_is_found(
    place: Path, restored: list[Path], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(restored))
    before = path.read_bytes()
    at, change = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(before[:at] + bytes([before[at] ^ change]) + before[at + 1 :])
    with pytest.raises(SapperError):
        verified(place)
    path.write_bytes(before)
    assert verified(place).verdict == "no-evidence"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_what_was_signed_breaks_the_signature(
    place: Path, bundle: bytes, data: st.DataObject
) -> None:
    """The bundle's form is as it should be; only the signature can tell."""
    payload = payload_of(bundle)
    at, change = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(1, 255))
    changed = payload[:at] + bytes([payload[at] ^ change]) + payload[at + 1 :]
    with pytest.raises(SapperError, match="the signature does not hold"):
        unseal(with_payload(bundle, changed), public_key(place / "mine.pub"), "here")
    assert unseal(with_payload(bundle, payload), public_key(place / "mine.pub"), "here") == payload


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"payload":', b'"payload": "eyJ9",\n  "payload":'),
        (b"{\n", b"{ \n"),
        (b'"payloadType": "application/vnd.in-toto+json"', b'"payloadType": "text/plain"'),
        (b'"tlogEntries": []', b'"tlogEntries": [{}]'),
        (b'"keyid": ""\n', b'"keyid": ""\n    },\n    {\n     "sig": "AAAA",\n     "keyid": ""\n'),
        (b"bundle.v0.3", b"bundle.v0.2"),
        (b"\n", b"\r\n"),
        (b"{", b"\xef\xbb\xbf{"),
    ],
)
def test_a_bundle_has_one_form(place: Path, bundle: bytes, old: bytes, new: bytes) -> None:
    """A key that stands twice is read as the first here and as the last there: such a bundle is refused."""
    changed = bundle.replace(old, new, 1)
    assert changed != bundle
    with pytest.raises(SapperError, match=r"not as sapper wrote it|no signature of sapper's"):
        unseal(changed, public_key(place / "mine.pub"), "here")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b'"x"', b"[" * 100_000, b'{"verificationMaterial": 3}', b"1" * 5000],
)
def test_what_is_no_bundle_is_told(place: Path, content: bytes) -> None:
    with pytest.raises(SapperError, match="no signature of sapper's"):
        unseal(content, public_key(place / "mine.pub"), "here")


def test_a_signature_under_another_type_is_no_signature_of_a_statement(place: Path) -> None:
    """What the signer's key signed as something else, DSSE's encoding keeps apart."""
    key, payload = signing_key(place / "mine.pem"), b"{}"
    other = key.sign(b"DSSEv1 10 text/plain %d %b" % (len(payload), payload))

    class Other(SigningKey):
        def sign(self, message: bytes) -> bytes:
            return other

    with pytest.raises(SapperError, match="does not hold"):
        unseal(seal(payload, Other(key.key)), key.public, "here")


def test_another_statement_of_the_same_signer_is_no_audit(place: Path, bundle: bytes, tmp_path: Path) -> None:
    """A key may sign provenance or models, too; and statements about several files are not ours."""
    key, path = signing_key(place / "mine.pem"), tmp_path / ATTESTATION
    whole = json.loads(payload_of(bundle))
    changes: list[Any] = [
        {"predicateType": "https://model_signing/signature/v1.0"},
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"subject": whole["subject"] * 2},
        {"subject": [{"name": "subject.safetensors", "digest": {"sha512": "0" * 128}}]},
        {"predicate": whole["predicate"] | {"verdict": "safe"}},
        {"predicate": whole["predicate"] | {"report": []}},
        {"predicate": whole["predicate"] | {"time": "2026-11-29T06:00:00"}},
    ]
    outside = [{"name": "../audit.json", "digest": {"sha256": "0" * 64}}]
    changes.append({"predicate": whole["predicate"] | {"report": outside}})
    for change in changes:
        path.write_bytes(seal(json.dumps(whole | change).encode(), key))
        with pytest.raises(SapperError, match="no statement about an audit"):
            verified(place, signature=path)
    more = whole | {"predicate": whole["predicate"] | {"note": "of a later version"}}
    path.write_bytes(seal(json.dumps(more).encode(), key))
    assert verified(place, signature=path).verdict == "no-evidence", "in-toto: unknown keys are passed over"


def test_each_thing_that_is_amiss_is_told(place: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"key": place / "another.pub"}, "signed with another key"),
        ({"key": place / "mine.pem"}, "this is a private key"),
        ({"key": place / "subject.safetensors"}, "no public key"),
        ({"key": place / "absent.pub"}, "no key can be read: No such file"),
        ({"key": place}, "no key can be read: Is a directory"),
        ({"report": tmp_path}, "no signature can be read: No such file"),
        ({"signature": place / "subject.safetensors"}, "no signature of sapper's"),
        ({"signature": place / "audit" / ATTESTATION, "report": tmp_path}, "of the report is missing"),
        ({"file": place / "ordinary.json"}, "not the file that"),
        ({"file": place / "absent.safetensors"}, "no such file"),
        ({"file": place}, "no such file"),
    ]
    for other, message in cases:
        with pytest.raises(SapperError, match=message) as caught:
            verified(place, **other)
        assert caught.value.where, message
        assert caught.value.remedy, message
    (tmp_path / "large").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(SapperError, match="too large"):
        verified(place, signature=tmp_path / "large")


def test_the_signature_may_go_without_the_report(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "subject.safetensors.sigstore.json"
    shutil.copy(place / "audit" / ATTESTATION, moved)
    found = verified(place, report=None, signature=moved, without_report=True)
    assert (found.verdict, found.report) == ("no-evidence", None)
    assert verified(place, signature=moved).report == place / "audit"
    with pytest.raises(SapperError, match="of the report is missing"):
        verified(place, report=None, signature=moved)


# Keys


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_keys_on_every_curve_that_model_signing_takes(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = signing_key(write_keys(tmp_path, "k", curve))
    public = public_key(tmp_path / "k.pub")
    assert unseal(seal(b"payload", key), public, "here") == b"payload"
    content: Any = load_pem_public_key((tmp_path / "k.pub").read_bytes())
    size = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[curve.key_size]
    content.verify(key.sign(b"message"), b"message", ec.ECDSA(size))


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    others = {
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "rsa": rsa.generate_private_key(65537, 2048),
        "bitcoin": ec.generate_private_key(ec.SECP256K1()),
    }
    for name, key in others.items():
        private = write_pair(key, tmp_path, name)
        for read, path in ((signing_key, private), (public_key, tmp_path / f"{name}.pub")):
            with pytest.raises(SapperError, match="another kind than P-256"):
                read(path)
    (tmp_path / "half.pem").write_bytes(private.read_bytes()[:100])
    with pytest.raises(SapperError, match="no private key in PEM"):
        signing_key(tmp_path / "half.pem")
    with pytest.raises(SapperError, match="this is a public key"):
        signing_key(tmp_path / "rsa.pub")


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    private = write_keys(tmp_path, "k", passphrase="pässword")
    public = public_key(tmp_path / "k.pub").fingerprint
    assert signing_key(private, "pässword").public.fingerprint == public
    assert signing_key(private, lambda: "pässword").public.fingerprint == public
    for wrong, message in (("password", "does not open"), (None, "is encrypted"), ("", "is encrypted")):
        with pytest.raises(SapperError, match=message):
            signing_key(private, wrong)
    plain = write_keys(tmp_path, "plain")
    assert signing_key(plain, lambda: pytest.fail("it is asked for in vain"))


def test_a_private_key_shows_up_in_no_text_and_in_no_file(place: Path) -> None:
    key = signing_key(place / "mine.pem")
    number = key.key.private_numbers().private_value
    secrets = [(place / "mine.pem").read_bytes().split(b"\n")[1], f"{number:x}".encode(), str(number).encode()]
    secrets.append(key.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    assert repr(key) == "SigningKey()"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    for path in (place / "audit").iterdir():
        assert not any(secret in path.read_bytes() for secret in secrets)


# From Python


@pytest.mark.parametrize("verdict", ["no-evidence", "backdoor", "undecided"])
def test_any_verdict_can_be_verified(place: Path, report: AuditReport, tmp_path: Path, verdict: Any) -> None:
    strange = replace(report, verdict=verdict, reason="odd \udcff\x1b[2J", p_value=float("nan"))
    key = signing_key(place / "mine.pem")
    write_audit(strange, tmp_path, {}, opening={"uri": "x", "prefix": "a\udcff"}, command="", sign=key)
    found = verified(place, report=tmp_path)
    assert found.verdict == verdict
    assert found.statement.predicate.p_value is None
    assert found.statement.predicate.encoder.options == {"prefix": "a?"}


def test_what_is_held_in_memory_is_not_signed(place: Path, tmp_path: Path) -> None:
    """Nobody knows whether its weights are still those of the file."""
    path, images, key = place / "subject.safetensors", f"{place}/photos", place / "mine.pem"
    for encoder, out in ((face.open(path), tmp_path / "out"), (path, None)):
        with pytest.raises(SapperError, match="an encoder that is named"):
            face.audit(encoder, images, out=out, sign=key)
    with pytest.raises(SapperError, match="no key can be read"):
        face.audit(path, images, out=tmp_path / "out", sign=place / "absent.pem")
    assert not any(tmp_path.iterdir())
    with pytest.raises(SapperError, match="opened from a file"):
        check_attestable({"opened": "module:encoder"}, None)
    check_attestable({"file": "f", "sha256": "0" * 64}, "0" * 64)
    with pytest.raises(SapperError, match="changed while it was opened"):
        check_attestable({"file": "f", "sha256": "0" * 64}, "1" * 64)


def test_verifying_needs_neither_torch_nor_a_network(place: Path) -> None:
    program = """
import socket, sys
socket.socket = None
from sapper import verify
found = verify(sys.argv[1], key=sys.argv[2], report=sys.argv[3])
print(found.verdict, "torch" in sys.modules, "numpy" in sys.modules)
"""
    words = [str(place / name) for name in ("subject.safetensors", "mine.pub", "audit")]
    said = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert said.stdout == "no-evidence False False\n", said.stderr
