"""Attacks by what the attacker holds (``contracts.py``); one method, one file.

They exist so that defenses can be measured. What they make is marked as backdoored.
"""

METHODS = {
    "badencoder": "sapper.attacks.implant.badencoder:BadEncoder",
    "ssl_backdoor": "sapper.attacks.poison.ssl_backdoor:SSLBackdoor",
    "ctrl": "sapper.attacks.poison.ctrl:CTRL",
    "carlini_terzis": "sapper.attacks.poison.carlini_terzis:CarliniTerzis",
    "corruptencoder": "sapper.attacks.poison.corruptencoder:CorruptEncoder",
}
