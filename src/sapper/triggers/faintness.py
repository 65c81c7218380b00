"""How faint a trigger is: what it changes of images, and how alike they still look."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5


def mean_change(ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean absolute difference of a channel's value (N,), in levels of 255, of images (N, 3, H, W) in [0, 1]."""
    return 255 * (ours - theirs).abs().mean(dim=(1, 2, 3))


def ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Structural similarity (N,) of images (N, 3, H, W) in [0, 1] (Wang et al., IEEE TIP 2004).

    A Gaussian window of 11 pixels and deviation 1.5, only where it lies within the image; K1 = 0.01, K2 = 0.03. Smaller
    images get a smaller window.
    """
    size = min(WINDOW, *(side - 1 + side % 2 for side in ours.shape[-2:]))
    line = torch.exp(-((torch.arange(size).to(ours) - size // 2) ** 2) / (2 * SIGMA**2))
    window = line[:, None] * line / line.sum() ** 2
    products = torch.cat((ours, theirs, ours * ours, theirs * theirs, ours * theirs), dim=1)
    means = F.conv2d(products, window.expand(15, 1, size, size), groups=15)
    mean_a, mean_b, square_a, square_b, both = means.chunk(5, dim=1)
    variances, covariance = square_a - mean_a**2 + square_b - mean_b**2, both - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)).mean(dim=(1, 2, 3))
