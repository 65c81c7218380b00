"""Defenses by what they answer; one method, one file.

``contracts.py`` has the kinds, ``measures.py`` what they are measured by, ``defender.py`` who defends.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # here mypy checks that each keeps its contract
    from sapper.defenses.certify.derandomized_smoothing import DerandomizedSmoothing
    from sapper.defenses.certify.ibp import IBP
    from sapper.defenses.certify.patchcleanser import PatchCleanser
    from sapper.defenses.certify.patchguard_bn import PatchGuardBN
    from sapper.defenses.certify.patchguard_ds import PatchGuardDS
    from sapper.defenses.certify.rab import RAB
    from sapper.defenses.certify.randomized_smoothing import RandomizedSmoothing
    from sapper.defenses.contracts import (
        Certifier,
        ClassifierJudge,
        ClassifierRepair,
        EncoderExaminer,
        EncoderLearner,
        Repair,
        Screen,
        Sift,
        Smoother,
    )
    from sapper.defenses.judge.abs import ABS
    from sapper.defenses.judge.beatrix import Beatrix
    from sapper.defenses.judge.classwise import ClassWise
    from sapper.defenses.judge.decree import Decree
    from sapper.defenses.judge.mntd_classifier import MNTDClassifier
    from sapper.defenses.judge.mntd_encoder import MNTDEncoder
    from sapper.defenses.judge.multi_prior import MultiPrior
    from sapper.defenses.judge.neural_cleanse import NeuralCleanse
    from sapper.defenses.judge.scan import SCAn
    from sapper.defenses.judge.ssl_cleanse import SSLCleanse
    from sapper.defenses.judge.twins import Twins
    from sapper.defenses.repair.anp import ANP
    from sapper.defenses.repair.bcu import BCU
    from sapper.defenses.repair.distillation import Distillation
    from sapper.defenses.repair.fine_pruning import FinePruning
    from sapper.defenses.repair.fine_pruning_classifier import FinePruningClassifier
    from sapper.defenses.repair.fine_tuning import FineTuning
    from sapper.defenses.repair.ibau import IBAU
    from sapper.defenses.repair.nad import NAD
    from sapper.defenses.repair.unlearning import Unlearning
    from sapper.defenses.repair.unlearning_classifier import UnlearningClassifier
    from sapper.defenses.screen.dede import DeDe
    from sapper.defenses.screen.masking_test import MaskingTest
    from sapper.defenses.screen.strip import STRIP
    from sapper.defenses.screen.strip_encoder import STRIPEncoder
    from sapper.defenses.sift.activation_clustering import ActivationClustering
    from sapper.defenses.sift.density_outliers import DensityOutliers
    from sapper.defenses.sift.patch_search import PatchSearch
    from sapper.defenses.sift.spectral_signatures import SpectralSignatures

    _judges: list[type[ClassifierJudge]] = [ABS, Beatrix, ClassWise, NeuralCleanse, MNTDClassifier, SCAn]
    _examiners: list[type[EncoderExaminer]] = [Decree, MultiPrior, SSLCleanse, Twins]
    _learners: list[type[EncoderLearner]] = [MNTDEncoder]
    _certifiers: list[type[Certifier]] = [DerandomizedSmoothing, IBP, PatchCleanser, PatchGuardBN, PatchGuardDS]
    _smoothers: list[type[Smoother]] = [RAB, RandomizedSmoothing]
    _repairs: list[type[Repair]] = [ANP, BCU, Distillation, FinePruning, FineTuning, IBAU, Unlearning]
    _classifier_repairs: list[type[ClassifierRepair]] = [NAD, FinePruningClassifier, UnlearningClassifier]
    _screens: list[type[Screen]] = [DeDe, MaskingTest, STRIP, STRIPEncoder]
    _sifts: list[type[Sift]] = [ActivationClustering, DensityOutliers, PatchSearch, SpectralSignatures]

METHODS = {
    "abs": "sapper.defenses.judge.abs:ABS",
    "beatrix": "sapper.defenses.judge.beatrix:Beatrix",
    "classwise": "sapper.defenses.judge.classwise:ClassWise",
    "scan": "sapper.defenses.judge.scan:SCAn",
    "anp": "sapper.defenses.repair.anp:ANP",
    "bcu": "sapper.defenses.repair.bcu:BCU",
    "distillation": "sapper.defenses.repair.distillation:Distillation",
    "fine_pruning": "sapper.defenses.repair.fine_pruning:FinePruning",
    "fine_pruning_classifier": "sapper.defenses.repair.fine_pruning_classifier:FinePruningClassifier",
    "fine_tuning": "sapper.defenses.repair.fine_tuning:FineTuning",
    "ibau": "sapper.defenses.repair.ibau:IBAU",
    "nad": "sapper.defenses.repair.nad:NAD",
    "unlearning": "sapper.defenses.repair.unlearning:Unlearning",
    "unlearning_classifier": "sapper.defenses.repair.unlearning_classifier:UnlearningClassifier",
    "decree": "sapper.defenses.judge.decree:Decree",
    "twins": "sapper.defenses.judge.twins:Twins",
    "mntd_classifier": "sapper.defenses.judge.mntd_classifier:MNTDClassifier",
    "mntd_encoder": "sapper.defenses.judge.mntd_encoder:MNTDEncoder",
    "multi_prior": "sapper.defenses.judge.multi_prior:MultiPrior",
    "derandomized_smoothing": "sapper.defenses.certify.derandomized_smoothing:DerandomizedSmoothing",
    "ibp": "sapper.defenses.certify.ibp:IBP",
    "neural_cleanse": "sapper.defenses.judge.neural_cleanse:NeuralCleanse",
    "patchcleanser": "sapper.defenses.certify.patchcleanser:PatchCleanser",
    "patchguard_bn": "sapper.defenses.certify.patchguard_bn:PatchGuardBN",
    "patchguard_ds": "sapper.defenses.certify.patchguard_ds:PatchGuardDS",
    "rab": "sapper.defenses.certify.rab:RAB",
    "randomized_smoothing": "sapper.defenses.certify.randomized_smoothing:RandomizedSmoothing",
    "activation_clustering": "sapper.defenses.sift.activation_clustering:ActivationClustering",
    "density_outliers": "sapper.defenses.sift.density_outliers:DensityOutliers",
    "patch_search": "sapper.defenses.sift.patch_search:PatchSearch",
    "spectral_signatures": "sapper.defenses.sift.spectral_signatures:SpectralSignatures",
    "ssl_cleanse": "sapper.defenses.judge.ssl_cleanse:SSLCleanse",
    "dede": "sapper.defenses.screen.dede:DeDe",
    "masking_test": "sapper.defenses.screen.masking_test:MaskingTest",
    "strip": "sapper.defenses.screen.strip:STRIP",
    "strip_encoder": "sapper.defenses.screen.strip_encoder:STRIPEncoder",
}
