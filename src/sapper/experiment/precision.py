"""The number format of a scenario, a zoo or a fleet: one for all stages, chosen once and kept in the Store.

What was kept holds, whatever a later measurement would say: a run that goes on must go on in its format, since its
stages are found by it. A store that is new measures anew; ``precision`` in a scenario leaves nothing to measuring.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from sapper import encoders, formats
from sapper.engine.environment import processor
from sapper.engine.stage import place_of
from sapper.engine.store import Store
from sapper.files import write_atomically
from sapper.pretraining.contracts import Pretraining
from sapper.running import FORMATS, Run
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection

SEARCHED = 32
"""Images at once in the measured step of a search for triggers."""


def of_training(
    precision: str, networks: Iterable[tuple[EncoderSection, Named[Pretraining]]], store: Store, run: Run
) -> Run:
    """The run in the format for pre-training these encoders by these methods: as was said, as was kept, or measured."""
    if precision in FORMATS:
        return replace(run, dtype=FORMATS[precision], why="as the scenario says")
    listed = list(networks)
    trained = list(dict.fromkeys((spec, _side(spec, method)) for spec, method in listed))
    most = max(method.parameters.batch for _, method in listed)

    def step() -> formats.Step:
        each = [
            formats.training_step(encoders.build(Run(device=run.device), **spec.model_dump()), side, run.device)
            for spec, side in trained
        ]
        return lambda dtype, count: [one(dtype, count) for one in each]

    described = [{"encoder": spec.model_dump(mode="json"), "side": side} for spec, side in trained]
    return _kept({"training": described, "batch": most}, store, run, step, most)


def of_searching(network: encoders.Encoder, run: Run, store: Store | None = None) -> Run:
    """The run in the format for searching triggers in encoders like this one: as was kept, or measured."""
    card = network.card
    described = {"architecture": card.architecture, "width": card.width, "stem": card.stem, "side": card.input_size}

    def step() -> formats.Step:
        return formats.search_step(network, card.input_size, run.device)

    if store is None:
        return formats.fastest(run, step, SEARCHED)
    return _kept({"search": described}, store, run, step, SEARCHED)


def _kept(work: dict[str, Any], store: Store, run: Run, step: Callable[[], formats.Step], most: int) -> Run:
    """What was measured for this work on a machine like this one, if it was; else it is measured and kept."""
    if not formats.measurable(run.device):
        return formats.fastest(run, step, most)
    key = work | {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    path = store.root / f"{place_of('number-format', key)}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return replace(run, dtype=FORMATS[kept["format"]], why=str(kept["why"]))
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not what we wrote
        chosen = formats.fastest(run, step, most)
    content = {"format": chosen.number_format, "why": chosen.why, "of": key}
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return chosen


def _side(spec: EncoderSection, method: Named[Pretraining]) -> int:
    """Of the images that a pre-training shows the encoder."""
    return method.parameters.view_size or spec.input_size
