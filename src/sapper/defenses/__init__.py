"""Defenses by what they answer; one method, one file.

``contracts.py`` has the kinds, ``measures.py`` what they are measured by, ``defender.py`` who defends.
"""

METHODS = {
    "decree": "sapper.defenses.judge.decree:Decree",
    "mntd_classifier": "sapper.defenses.judge.mntd_classifier:MNTDClassifier",
    "mntd_encoder": "sapper.defenses.judge.mntd_encoder:MNTDEncoder",
    "multi_prior": "sapper.defenses.judge.multi_prior:MultiPrior",
    "neural_cleanse": "sapper.defenses.judge.neural_cleanse:NeuralCleanse",
    "patchcleanser": "sapper.defenses.certify.patchcleanser:PatchCleanser",
    "patchguard_bn": "sapper.defenses.certify.patchguard_bn:PatchGuardBN",
    "patchguard_ds": "sapper.defenses.certify.patchguard_ds:PatchGuardDS",
    "ssl_cleanse": "sapper.defenses.judge.ssl_cleanse:SSLCleanse",
}
