"""What a classifier computes on its way from images to an answer: maps, last features, and the answer itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapper.defenses.stages import stages, watched
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Samples


@dataclass(frozen=True)
class Seen:
    """What a classifier says of N images: what was looked for, N rows, and its answers, int64 (N,); on the CPU."""

    values: Tensor
    answers: Tensor


def before_last_stage(encoder: Encoder, method: str) -> nn.Module:
    """What gives the input of an encoder's last stage. Raises ``SapperError`` where its stages are not known."""
    try:
        return stages(encoder)[-2]
    except SapperError as error:
        raise SapperError(error.what, where=method, remedy='look at the features: layer = "features"') from error


def maps_of(output: Tensor, encoder: Encoder) -> Tensor:
    """A stage's output as channels and places, float (N, C, places); of tokens (N, T, C), too."""
    if output.ndim == 3:
        return output.float().transpose(1, 2)
    if getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC":
        output = output.permute(0, 3, 1, 2)
    return output.float().flatten(2)


def last_linear(classifier: Classifier) -> nn.Linear | None:
    """The layer that gives the logits; none for a head that has no linear layer, such as nearest neighbors."""
    found = [module for module in classifier.head.modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


@torch.no_grad()
def last_features(classifier: Classifier, samples: Samples, run: Run) -> Seen:
    """What the classifier's last linear layer is given of each sample, float (N, D), and its answers.

    Of a head without such a layer, what the encoder gives the head: features of length 1.
    """
    layer, found, answers = last_linear(classifier), list[Tensor](), list[Tensor]()
    for batch in batches(classifier, samples, run):
        given: list[Tensor] = []
        place = classifier.head if layer is None else layer
        hook = place.register_forward_pre_hook(lambda _module, inputs, kept=given: kept.append(inputs[0]))
        try:
            answers.append(_answers(classifier, batch, run))
        finally:
            hook.remove()
        found.append(given[-1].float().cpu())
    return Seen(torch.cat(found), torch.cat(answers))


@torch.no_grad()
def seen_maps(
    classifier: Classifier,
    samples: Samples,
    run: Run,
    stage: nn.Module | None,
    look: Callable[[Tensor, Tensor], Tensor],
) -> Seen:
    """What ``look`` makes of a stage's maps, float (n, C, places), and of the answers to the same n images, int64 (n,).

    It is asked a batch at a time, on the run's device, and gives n rows. Without a stage the maps are the encoder's
    features, at one place (n, D, 1).
    """
    place = classifier.encoder if stage is None else stage
    found, answers = list[Tensor](), list[Tensor]()
    for batch in batches(classifier, samples, run):
        with watched([place]) as outputs:
            answers.append(_answers(classifier, batch, run))
        (output,) = outputs
        maps = output.float().unsqueeze(2) if stage is None else maps_of(output, classifier.encoder)
        found.append(look(maps, answers[-1].to(maps.device)).cpu())
    return Seen(torch.cat(found), torch.cat(answers))


def batches(classifier: Classifier, samples: Samples, run: Run) -> Iterator[Tensor]:
    """Batches on the run's device, as many as go through an encoder at once; the classifier answers as in use."""
    classifier.to(run.device).eval()
    for batch in samples.batches(min(500, samples.at_once(run.device))):
        yield batch.to(run.device)


def _answers(classifier: Classifier, batch: Tensor, run: Run) -> Tensor:
    with run.autocast():
        return classifier(batch).argmax(1).cpu()
