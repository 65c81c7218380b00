"""Where a data set comes from, in sentences for reports.

In what a copy differs from the original is told from the files at hand and not from memory, so that it stays true
of whatever copy a user has.
"""

from pathlib import Path

from sapper.datasets.readers import Raw
from sapper.datasets.registry import DatasetInfo


def of_path(path: Path, asked: str, split: str, raw: Raw, size: int) -> str:
    """Of a user's own set. ``asked`` is the split that was asked for, ``split`` the one that was read."""
    return " ".join([f"Read from {path}.", *_stand_in(asked, split), *_resized(raw, size), *raw.notes])


def of_known(info: DatasetInfo, place: str, title: str, asked: str, split: str, raw: Raw, size: int) -> str:
    """Of a known set found in ``place``; ``title`` is what the copy's README says of it, if there is one."""
    sentences = [
        f"{info.source}.",
        f'Read from {place}, "{title}".' if title else f"Read from {place}.",
        *_stand_in(asked, split),
        *_other_count(info, split, len(raw.decoded.images)),
        *_lossy_copy(info, raw),
        *_other_size(info, raw),
        *_resized(raw, size),
        *raw.notes,
    ]
    return " ".join(sentences)


def readme_title(folder: Path) -> str:
    """The first line of the README in ``folder``, in which copies say what was done to them; empty if none."""
    try:
        with (folder / "README.md").open(encoding="utf-8-sig", errors="replace") as file:
            return " ".join(file.readline(200).strip("# \n").split())
    except OSError:
        return ""


def _stand_in(asked: str, split: str) -> list[str]:
    return [] if asked == split else [f"Its {split} split stands in for {asked}, which it lacks."]


def _other_count(info: DatasetInfo, split: str, found: int) -> list[str]:
    official = info.count(split)
    if official is None or official == found:
        return []
    return [
        f"It holds {found:,} images where the official {split} split has {official:,}: "
        "do not quote a result on it as official accuracy."
    ]


def _lossy_copy(info: DatasetInfo, raw: Raw) -> list[str]:
    if not info.lossless or not raw.decoded.formats & {"JPEG", "MPO"}:
        return []
    return ["Its images are JPEG copies (lossy) of lossless originals: models trained on the originals lose accuracy."]


def _other_size(info: DatasetInfo, raw: Raw) -> list[str]:
    """Said only where all images are stored at one size that is not the original's."""
    if len(raw.decoded.sizes) != 1 or raw.decoded.sizes == {(info.size, info.size)}:
        return []
    original = f"{info.size}x{info.size}" if info.size else "of various sizes"
    return [f"It stores images at {_describe_sizes(raw)}; the originals are {original}."]


def _resized(raw: Raw, size: int) -> list[str]:
    if raw.decoded.sizes == {(size, size)}:
        return []
    return [f"Resized from {_describe_sizes(raw)} to {size}x{size} (bilinear, antialiased)."]


def _describe_sizes(raw: Raw) -> str:
    sizes = sorted(raw.decoded.sizes)
    return f"{sizes[0][0]}x{sizes[0][1]}" if len(sizes) == 1 else "various sizes"
