"""Terms against a defense that the attacker knows (``attacks/adapting.py``); one defense, one file."""

METHODS = {
    "decree": "sapper.attacks.adaptive.decree:AgainstDecree",
    "mntd_encoder": "sapper.attacks.adaptive.mntd_encoder:AgainstMNTDEncoder",
    "multi_prior": "sapper.attacks.adaptive.multi_prior:AgainstMultiPrior",
    "patchcleanser": "sapper.attacks.adaptive.patchcleanser:AgainstPatchCleanser",
}
"""By the name of the defense. A package adds its own with an entry point in the group ``sapper.adaptive``."""
