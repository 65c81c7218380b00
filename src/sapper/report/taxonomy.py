"""What findings are called elsewhere. Names change from month to month; an id with its version does not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Technique:
    """An entry of MITRE ATLAS: its ``id``, and the ``version`` of the content in which it was read."""

    id: str
    version: str


BACKDOORED_WEIGHTS = Technique("AML.T0018.000", "5.6.0")
"""Poison AI Model, below Manipulate AI Model: weights that hold a backdoor."""

FROM_A_HUB = Technique("AML.T0010.003", "5.6.0")
"""AI Supply Chain Compromise: Model."""

VALIDATE_MODEL = Technique("AML.M0008", "5.6.0")
"""The mitigation that an audit is: Validate AI Model."""
