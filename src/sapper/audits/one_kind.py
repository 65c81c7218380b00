"""Are these encoders of one kind, and each there once? Asked before hours are spent on a bag of them."""

from collections.abc import Callable, Sequence

from sapper.audits import auditing, calibration
from sapper.defenses.budgets import Budget
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.samples import ImageSet


def of_one_kind(
    uris: Sequence[str], opened: Callable[[str], tuple[Encoder, ImageSet]], budget: Budget
) -> tuple[list[str], calibration.Key]:
    """Every encoder's fingerprint, and the key that they share. Raises ``SapperError`` for copies and other kinds."""
    seen: dict[str, str] = {}
    keys: list[calibration.Key] = []
    for uri in uris:
        subject, shown = opened(uri)
        if subject.card.backdoored:
            what, remedy = "this encoder says that it is backdoored", "name known-clean encoders only"
            raise SapperError(what, where=uri, remedy=remedy)
        auditing.check_images(subject, shown)
        digest, key = auditing.fingerprint(subject), calibration.Key.of(subject, shown, budget)
        if digest in seen:
            what = f"these are the weights of {seen[digest]}"
            raise SapperError(what, where=uri, remedy="name each encoder once: copies tell nothing")
        if keys and key != keys[0]:
            what = f"it has other {', '.join(keys[0].differs(key))} than {uris[0]}"
            raise SapperError(what, where=uri, remedy="make a bag of each kind")
        seen[digest] = uri
        keys.append(key)
    return list(seen), keys[0]
