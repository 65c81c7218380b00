"""Defenses by what they answer; one method, one file.

Detect: is this classifier backdoored? ``judge(classifiers, defender, run) → list[Verdict]``. Is this encoder?
``fit(fleet, images, run) → EncoderJudge``, whose ``judge(encoders, run)`` answers, where it must learn;
``examine(encoder, images, run) → Verdict`` where ordinary images are enough.
Certify: which predictions can no patch change? ``prepare(classifier, defender, run) → Guarded``, which predicts and
certifies. ``defender.py`` has the contracts.
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
