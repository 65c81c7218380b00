"""The shortest vector in the hull of several gradients: the direction that makes all their losses smaller.

    α = argmin ‖Σ_i α_i g_i‖²    with α_i ≥ 0, Σ_i α_i = 1            (MGDA)

Source: Désidéri, "Multiple-gradient descent algorithm", 2012; Sener, Koltun, "Multi-Task Learning as Multi-Objective
Optimization", NeurIPS 2018, whose Frank–Wolfe iteration this is.
"""

import torch
from torch import Tensor


def min_norm(gram: Tensor, iterations: int = 250, enough: float = 1e-6) -> Tensor:
    """α, float64 (K,), from the inner products of the gradients, (K, K). Two have a closed form."""
    products = gram.double()
    alpha = torch.full((len(products),), 1 / len(products), dtype=torch.float64, device=products.device)
    if len(products) == 2:
        return _pair(alpha.new_tensor([1.0, 0.0]), alpha.new_tensor([0.0, 1.0]), products)
    for _ in range(iterations):
        corner = torch.zeros_like(alpha)
        corner[(products @ alpha).argmin()] = 1
        moved = _pair(alpha, corner, products)
        done = bool((moved - alpha).abs().sum() < enough)
        alpha = moved
        if done:
            break
    return alpha


def _pair(first: Tensor, second: Tensor, products: Tensor) -> Tensor:
    """The point with the least norm between two points α, β of the simplex, each (K,)."""
    away = first - second
    curvature = away @ products @ away
    if float(curvature) <= 0:  # both are the same vector
        return first
    share = (-(away @ products @ second) / curvature).clamp(0, 1)
    return share * first + (1 - share) * second
