"""Signing and verifying as a user does: audit --sign, repair --sign, verify; exit codes, files, and clear errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sapper as face
from sapper import datasets, encoders
from sapper.attestations import ATTESTATION
from sapper.audits.calibration import Bag, Key, write_bag
from sapper.defenses.budgets import BUDGETS
from sapper.files import sha256
from sapper.report.repaired import write_repair
from sapper.running import Run
from tests.micro import write_data
from tests.program import Sapper, told
from tests.test_audit_command import BACKDOORED, CODE, FILES
from tests.test_repair_command import SHORT

NO_EXTRA = "install it: pip install 'sapper[sign]'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an encoder, and a bag beside which it is ordinary."""
    folder = tmp_path_factory.mktemp("signing")
    write_data(folder)
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16)
    encoders.save(subject, folder / "subject.safetensors")
    key = Key.of(subject, datasets.load(f"{folder}/photos", "train", size=16), BUDGETS["quick"])
    bag = Bag(name="ordinary", key=key, pretraining="made up", images="photos", scores={"multi_prior": [1e6] * 40})
    write_bag(bag, folder / "ordinary.json")
    return folder


def words(place: Path, out: Path, *more: str | Path | int, subject: str | None = None) -> list[str | Path | int]:
    """An audit of the encoder there, or of one that a function makes."""
    common = ("--images", place / "photos", "--device", "cpu", "--out", out)
    return ["audit", subject or place / "subject.safetensors", *common, *(CODE if subject else ()), *more]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The signer's private key; the public one beside it."""
    signers = pytest.importorskip("tests.signers", reason="signatures need the extra sign")
    made: Path = signers.write_keys(tmp_path, "mine")
    signers.write_keys(tmp_path, "another")
    return made


def verify(sapper: Sapper, file: Path, key: Path, *more: str | Path) -> tuple[int, str]:
    end = sapper("verify", file, "--key", key.with_suffix(".pub"), *more)
    return end.code, " ".join((end.out + end.err).split())


def test_an_audit_is_signed_and_verified(sapper: Sapper, place: Path, tmp_path: Path, key: Path) -> None:
    out, subject = tmp_path / "out", place / "subject.safetensors"
    said = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.5,0.5")
    end = sapper(*words(place, out, "--sign", key, "--fail-on", "backdoor", *said))
    assert end.code == 0, "the exit code is the audit's own"
    assert {path.name for path in out.iterdir()} == FILES | {ATTESTATION}
    fingerprint = sha256(key.with_suffix(".pub"))
    assert f"signed by the key {fingerprint}: {out / ATTESTATION}" in end.out
    code, text = verify(sapper, subject, key, "--report", out)
    assert code == 3, text
    for shown in ("Verified. Undecided.", sha256(subject), fingerprint, "mean 0.1,0.2,0.3", "by the signer's clock"):
        assert shown in text
    moved = tmp_path / "another name.safetensors"
    shutil.copy(subject, moved)
    assert "which was called subject.safetensors" in verify(sapper, moved, key, "--report", out)[1]
    assert "report: not looked at" in verify(sapper, moved, key, "--report", out, "--without-report")[1]
    (out / "audit.html").write_text("No evidence of a backdoor")
    assert "this file of the report is not as it was signed" in told(
        sapper("verify", subject, "--key", key.with_suffix(".pub"), "--report", out)
    )
    moved.write_bytes(subject.read_bytes()[:-1] + b"x")
    for file, signer, message in (
        (moved, "mine.pub", "this is not the file that"),
        (subject, "another.pub", "this was signed with another key"),
        (subject, "mine.pem", "this is a private key"),
        (tmp_path / "absent", "mine.pub", "there is no such file"),
    ):
        assert message in told(sapper("verify", file, "--key", tmp_path / signer, "--report", out))


@pytest.mark.slow
def test_the_usual_places(
    sapper: Sapper,
    place: Path,
    tmp_path: Path,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An audit without --out, and verify without --report, mean the same folder."""
    monkeypatch.chdir(tmp_path)
    subject = place / "subject.safetensors"
    bag = ("--bag", place / "ordinary.json")
    audit = ["audit", subject, "--images", place / "photos", "--device", "cpu", *bag]
    assert "no signature can be read" in told(sapper("verify", subject, "--key", key.with_suffix(".pub")))
    assert sapper(*audit, "--sign", key).code == 0
    code, text = verify(sapper, subject, key)
    assert (code, "bags: ordinary" in text) == (0, True), text
    assert sapper(*audit).code == 0
    assert not (tmp_path / "runs" / "audit" / ATTESTATION).exists(), "no signature of an earlier audit is left"
    assert "no signature can be read" in told(sapper("verify", subject, "--key", key.with_suffix(".pub")))


def test_a_key_that_cannot_sign_is_told_before_the_audit(
    sapper: Sapper,
    place: Path,
    tmp_path: Path,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signers = pytest.importorskip("tests.signers")
    out, locked = tmp_path / "out", signers.write_keys(tmp_path, "locked", passphrase="word")
    assert "no key can be read" in told(sapper(*words(place, out, "--sign", tmp_path / "absent.pem")))
    assert "this is a public key" in told(sapper(*words(place, out, "--sign", key.with_suffix(".pub"))))
    assert "SAPPER_KEY_PASSPHRASE" in told(sapper(*words(place, out, "--sign", locked)))
    monkeypatch.setenv("SAPPER_KEY_PASSPHRASE", "wrong")
    assert "does not open this key" in told(sapper(*words(place, out, "--sign", locked)))
    assert "opened from a file" in told(sapper(*words(place, out, "--sign", key, subject=BACKDOORED)))
    assert not out.exists()
    monkeypatch.setenv("SAPPER_KEY_PASSPHRASE", "word")
    end = sapper(*words(place, out, "--sign", locked))
    assert end.code == 3, end.err
    assert "word" not in json.loads((out / "audit.json").read_text())["command"]
    assert verify(sapper, place / "subject.safetensors", locked, "--report", out)[0] == 3


@pytest.mark.slow
def test_a_repair_is_signed_and_verified(sapper: Sapper, place: Path, tmp_path: Path, key: Path) -> None:
    fixed, subject = tmp_path / "fixed.safetensors", place / "subject.safetensors"
    common = ("--images", place / "photos", "--device", "cpu", *SHORT)
    assert "no key can be read" in told(sapper("repair", subject, *common, "--out", fixed, "--sign", "absent.pem"))
    assert not fixed.exists()
    end = sapper("repair", subject, *common, "--out", fixed, "--sign", key)
    assert end.code == 3, end.err
    folder = tmp_path / "fixed-repair"
    assert f": {folder / ATTESTATION}" in end.out
    code, text = verify(sapper, fixed, key)
    assert code == 3, text
    assert "repair: fine_pruning; before it: Undecided" in text
    assert f"files as they were signed: {folder}" in text
    assert "no p-value, so no bound on false alarms" in text
    (folder / "extra.txt").write_text("by somebody else")
    assert "not signed, so not vouched for: extra.txt" in verify(sapper, fixed, key)[1]
    (folder / "extra.txt").unlink()
    repair = face.verify(fixed, key=key.with_suffix(".pub")).statement.predicate.repair
    assert repair is not None
    assert repair.encoder is not None
    assert repair.parameters["steps"] == 4
    assert (repair.encoder.name, repair.encoder.digest.sha256) == (subject.name, sha256(subject))
    assert "this is not the file" in told(sapper("verify", subject, "--key", tmp_path / "mine.pub", "--report", folder))
    for name in ("before/audit.json", "after/triggers.safetensors", "repair.json", "repair.html"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b" ")
        assert "not as it was signed" in told(sapper("verify", fixed, "--key", tmp_path / "mine.pub"))
        (folder / name).unlink()
        lost = told(sapper("verify", fixed, "--key", tmp_path / "mine.pub"))
        assert "this file of the report is missing" in lost
        assert "do not rely on this" in lost
        (folder / name).write_bytes(whole)
    assert verify(sapper, fixed, key)[0] == 3


@pytest.mark.slow
def test_no_repair_is_signed_for_another_file(place: Path, tmp_path: Path, key: Path) -> None:
    report = face.repair(
        place / "subject.safetensors",
        f"{place}/photos",
        method="fine_tuning",
        parameters={"steps": 1, "batch": 8},
    )
    signer, out = face.signing_key(key), tmp_path / "report"
    about = {"opening": {"uri": "x"}, "command": "", "sign": signer}
    with pytest.raises(face.SapperError, match="not the repaired encoder"):
        write_repair(report, out, {}, file=place / "subject.safetensors", **about)  # type: ignore[arg-type]
    assert not out.exists()
    encoders.save(report.repaired.encoder, tmp_path / "fixed.safetensors")
    write_repair(report, out, {}, file=tmp_path / "fixed.safetensors", **about)  # type: ignore[arg-type]
    found = face.verify(tmp_path / "fixed.safetensors", key=key.with_suffix(".pub"), report=out)
    assert found.statement.predicate.repair is not None


def test_without_the_extra_all_else_works_and_the_remedy_is_told(
    sapper: Sapper,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    (tmp_path / "key.pem").write_text("whatever")
    out = tmp_path / "out"
    assert NO_EXTRA in " ".join(told(sapper(*words(place, out, "--sign", tmp_path / "key.pem"))).split())
    assert not out.exists()
    subject = place / "subject.safetensors"
    assert NO_EXTRA in " ".join(told(sapper("verify", subject, "--key", tmp_path / "key.pem")).split())
    assert sapper(*words(place, out)).code == 3


def test_nothing_asks_for_the_extra_before_it_is_needed() -> None:
    program = "import sys; sys.modules['cryptography'] = None; from sapper.__main__ import main; main()"
    for said in (["--version"], ["methods"], ["verify", "--help"], ["audit", "--help"]):
        end = subprocess.run([sys.executable, "-c", program, *said], capture_output=True, text=True, check=False)
        assert end.returncode == 0, end.stderr
