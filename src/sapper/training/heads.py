"""The small networks behind an encoder that pre-trainings train along and throw away."""

from torch import nn

from sapper.running import Run


def mlp(
    features: int, hidden: int, output: int, run: Run, *, norm_hidden: bool = True, norm_output: bool = False
) -> nn.Sequential:
    """Linear – BatchNorm – ReLU – Linear – BatchNorm, each BatchNorm if wanted; what it follows then has no bias."""
    with run.seeded():
        layers: list[nn.Module] = [nn.Linear(features, hidden, bias=not norm_hidden)]
        layers += [nn.BatchNorm1d(hidden)] if norm_hidden else []
        layers += [nn.ReLU(inplace=True), nn.Linear(hidden, output, bias=not norm_output)]
        layers += [nn.BatchNorm1d(output)] if norm_output else []
    return nn.Sequential(*layers)
