"""Sapper lays and finds backdoors in pre-trained encoders.

    report = sapper.audit("encoder.safetensors", "photos/")     is this encoder safe to build on?
    encoder = sapper.open("timm:resnet18", size=224)            any encoder as a module from images to features
    results = sapper.run("demo")                                an experiment, from a TOML file or by name
    bag = sapper.calibrate(["a.pt", "b.pt"], "photos/", name="mine")    what audits find in known-clean encoders

What needs torch is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapper.api import audit, calibrate, repair, replay, run, screen
    from sapper.attacks.target import Target
    from sapper.attestations import SigningKey, Verified, public_key, signing_key, verify
    from sapper.audits.calibration import Bag, read_bag, write_bag
    from sapper.audits.found import AuditReport
    from sapper.audits.repairing import RepairReport
    from sapper.downstream import Classifier
    from sapper.encoders import Card, Encoder, Trained, build, save
    from sapper.engine.cluster import Ray
    from sapper.errors import SapperError
    from sapper.experiment.results import Record, Results, read_results
    from sapper.opening import load, load_classifier, load_data, load_images, load_poisoned, open
    from sapper.report.audit_files import write_audit
    from sapper.report.merging import merge
    from sapper.report.repaired import write_repair
    from sapper.running import Run
    from sapper.samples import ImageSet, Samples
    from sapper.triggers import Blend, Filter, Mask, Patch, Trigger
    from sapper.verdicts import Certified, Verdict
    from sapper.zoo.whole import build_zoo, learn_from_zoo, score_zoo

__version__ = "0.1.0"

_PLACES = {
    "sapper.api": ("audit", "calibrate", "repair", "replay", "run", "screen"),
    "sapper.attacks.target": ("Target",),
    "sapper.attestations": ("SigningKey", "Verified", "public_key", "signing_key", "verify"),
    "sapper.audits.found": ("AuditReport",),
    "sapper.audits.calibration": ("Bag", "read_bag", "write_bag"),
    "sapper.audits.repairing": ("RepairReport",),
    "sapper.downstream": ("Classifier",),
    "sapper.encoders": ("Card", "Encoder", "Trained", "build", "save"),
    "sapper.engine.cluster": ("Ray",),
    "sapper.errors": ("SapperError",),
    "sapper.experiment.results": ("Record", "Results", "read_results"),
    "sapper.opening": ("load", "load_classifier", "load_data", "load_images", "load_poisoned", "open"),
    "sapper.report.audit_files": ("write_audit",),
    "sapper.report.merging": ("merge",),
    "sapper.report.repaired": ("write_repair",),
    "sapper.running": ("Run",),
    "sapper.samples": ("ImageSet", "Samples"),
    "sapper.triggers": ("Blend", "Filter", "Mask", "Patch", "Trigger"),
    "sapper.verdicts": ("Certified", "Verdict"),
    "sapper.zoo.whole": ("build_zoo", "learn_from_zoo", "score_zoo"),
}
"""In which module each public name is."""

__all__ = [
    "AuditReport",
    "Bag",
    "Blend",
    "Card",
    "Certified",
    "Classifier",
    "Encoder",
    "Filter",
    "ImageSet",
    "Mask",
    "Patch",
    "Ray",
    "Record",
    "RepairReport",
    "Results",
    "Run",
    "Samples",
    "SapperError",
    "SigningKey",
    "Target",
    "Trained",
    "Trigger",
    "Verdict",
    "Verified",
    "audit",
    "build",
    "build_zoo",
    "calibrate",
    "learn_from_zoo",
    "load",
    "load_classifier",
    "load_data",
    "load_images",
    "load_poisoned",
    "merge",
    "open",
    "public_key",
    "read_bag",
    "read_results",
    "repair",
    "replay",
    "run",
    "save",
    "score_zoo",
    "screen",
    "signing_key",
    "verify",
    "write_audit",
    "write_bag",
    "write_repair",
]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
