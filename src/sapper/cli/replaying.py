"""The command that measures again what an audit found."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sapper.cli.audits import REPLAY
from sapper.cli.opening import WEIGHTS, Images, Said, Split, begin, check_first, load_images, open_encoder, with_opening
from sapper.cli.shared import DataRoot, Device, Download, Threads, check_file, say
from sapper.errors import SapperError


@with_opening
def replay(
    recorded: Annotated[Path, typer.Argument(help="The audit.json of an audit.")],
    images: Images,
    split: Split = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Where the audited file is now, or another encoder to try.")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File for what is measured, replay.json beside the audit by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the controls.")] = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    said: Said,
) -> None:
    """Stamp an audit's recovered triggers on other images, and measure again what they do.

    The encoder that was audited is opened as it was then, wherever it lies; another one as --arch, --mean … say.
    """
    path = out_file or recorded.parent / REPLAY
    check_file(path)
    from sapper.audits.recorded import read_content
    from sapper.files import as_text, sha256, write_atomically

    audit = read_content(recorded)
    recorded_opening, audited = audit["opening"], audit["encoder"].get("sha256")
    uri = encoder or recorded_opening["uri"]
    if encoder is None or (Path(uri).is_file() and sha256(Path(uri)) == audited):
        as_then = {name: value for name, value in recorded_opening.items() if name != "uri"}
        said = replace(said, **as_then | said.recorded())
    if encoder is None and not uri.startswith("https://") and Path(uri).suffix in WEIGHTS and not Path(uri).exists():
        remedy = "name its place with --encoder, or run this where the audit was run"
        raise SapperError("the audited encoder is not there", where=uri, remedy=remedy)
    opening = check_first([uri], images, data_root, device, said, download=download)
    run, bars = begin(device, threads, seed)
    from sapper.audits import auditing, replaying
    from sapper.report import audit as page
    from sapper.running import FORMATS

    found = replaying.read_audit(recorded)
    dtype = FORMATS.get(str(audit.get("number_format")), run.dtype)
    with bars as progress:
        run = replace(run, progress=progress, dtype=dtype)  # of the audit: what it found is measured anew
        subject = open_encoder(uri, run, opening)
        if encoder is None and audited != subject.card.origin.get("sha256"):
            what, remedy = "this is not the file that was audited", "name the file with --encoder if that is meant"
            raise SapperError(what, where=uri, remedy=remedy)
        shown = load_images(images, split, subject.card.input_size, data_root, download=download)
        replays = replaying.replay(found, subject, shown, run)
    content = {
        "schema": 1,
        "audit": audited,
        "encoder": auditing.about(subject),
        "images": auditing.about_images(shown),
        "seed": seed,
        "command": shlex.join(["sapper", *sys.argv[1:]]),
        "replays": replaying.as_json(replays),
    }
    write_atomically(path, as_text(content))
    if shown.digest == found.content["images"].get("sha256"):
        say("note: these are the images that the trigger was found with; others would be better evidence")
    if audited != subject.card.origin.get("sha256"):
        say(f"on {uri}, which is not the file that was audited:")
    for line in page.replay_lines(replays, found.in_clean) + page.guess(auditing.about(subject)):
        say(line)
    say(f"measured: {path}")
