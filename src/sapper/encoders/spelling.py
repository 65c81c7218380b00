"""Names of libraries' models, read from the libraries' files: so a misspelled one is told before torch is loaded."""

import re
from importlib.util import find_spec
from pathlib import Path

from sapper.errors import SapperError, closest

REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""A function that timm or torchvision knows as a model."""


def check_spelling(library: str, name: str) -> None:
    """Raises ``SapperError`` for the name of a model that an installed library cannot have.

    ``name`` as in ``timm:NAME``, ``torchvision:NAME/WEIGHTS`` and ``open_clip:NAME/TAG``. Only the model is looked at;
    no code of the library is run.
    """
    model = name.partition(".")[0] if library == "timm" else name.partition("/")[0]
    known = models_of(library)
    if known and model not in known:
        what = f"{library} has no model {model!r}"
        raise SapperError(what, where=f"{library}:{name}", remedy=closest(model, sorted(known)))


def models_of(library: str) -> set[str]:
    """The names of all models that a library defines; none where it is not installed, or not laid out as known."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return set()
    package = Path(spec.origin).parent
    if library == "open_clip":
        return {path.stem for path in (package / "model_configs").glob("*.json")}
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in (package / "models").glob("*.py"))
    return {name for source in sources for name in REGISTERED.findall(source)}
