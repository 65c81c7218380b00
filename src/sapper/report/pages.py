"""What all pages share: the templates' surroundings. Pages load nothing and run nothing."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from sapper.report import text


def environment() -> Environment:
    """The templates, with names escaped."""
    pages = Environment(
        loader=PackageLoader("sapper.report"),
        autoescape=True,  # names of classes, tasks and files are not ours
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "flat": text.flat,
        "plain": text.plain,
        "toml": text.toml,
        "number": text.number,
        "duration": text.duration,
    }
    return pages
