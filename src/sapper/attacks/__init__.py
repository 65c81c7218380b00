"""Attacks by what the attacker holds; one method, one file.

Encoder attacks: ``(encoder, shadow, targets, run) → Trained``. They exist so that defenses can be measured; what
they make is marked as backdoored.
"""

METHODS = {
    "badencoder": "sapper.attacks.badencoder:BadEncoder",
}
