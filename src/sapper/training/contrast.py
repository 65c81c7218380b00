"""The loss of contrastive learning."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(projected: Tensor, temperature: float) -> Tensor:
    """NT-Xent of 2N projections, float (2N, D); rows i and i + N are the two views of one image. A scalar."""
    z = F.normalize(projected, dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(z) // 2
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)
