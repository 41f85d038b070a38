"""UniPC for flow matching: predictor and corrector of order up to 3 on x0 (arXiv 2302.04867)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Variant = Literal["bh1", "bh2"]
Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]

MAX_ORDER = 3


def sample_unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    variant: Variant = "bh1",
    on_step: OnStep | None = None,
) -> Tensor:
    """Integrate from sigmas[0] to sigmas[-2] and return the last denoised latents.

    `denoise(x, sigma [B])` gives x0 and is called once a step; `on_step(i, x, denoised)` follows
    each call and may raise to stop.
    """
    steps = len(sigmas) - 1
    order = min(MAX_ORDER, steps - 1)
    sigma_of = [float(s) for s in sigmas]
    denoised: list[Tensor] = []
    for i in range(steps):
        if i > 0:
            coefficients = _coefficients(sigma_of, i, min(i, order), variant)
            x, corrected = _predict(coefficients, x, denoised)
        denoised.append(denoise(x, sigmas[i].to(x.device).expand(x.shape[0])))
        if i > 0:
            x = corrected(denoised[-1])
        if on_step is not None:
            on_step(i, x, denoised[-1])
        denoised = denoised[-MAX_ORDER:]
    return denoised[-1]


class _Coefficients:
    """The scalars of one step from sigma[i-1] to sigma[i], at order p."""

    def __init__(self, decay: float, phi_1: float, b_h: float, r: list[float], b: list[float]):
        self.decay, self.phi_1, self.b_h, self.r = decay, phi_1, b_h, r
        self.predictor = [0.5] if len(r) == 2 else _solve(r[:-1], b[:-1])
        self.corrector = [0.5] if len(r) == 1 else _solve(r, b)


def _coefficients(sigmas: list[float], i: int, p: int, variant: Variant) -> _Coefficients:
    lam = [-math.log(s) if s > 0 else math.inf for s in sigmas]
    h = lam[i] - lam[i - 1]
    r = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, p)] + [1.0]
    phi_1 = math.expm1(-h)
    b_h = -h if variant == "bh1" else phi_1
    b, phi, factorial = [], phi_1 / -h - 1, 1
    for j in range(1, p + 1):
        factorial *= j
        b.append(factorial * phi / b_h)
        phi = phi / -h - 1 / (factorial * (j + 1))
    return _Coefficients(sigmas[i] / sigmas[i - 1], phi_1, b_h, r, b)


def _solve(r: list[float], b: list[float]) -> list[float]:
    """rho of sum_k rho_k r_k^(j-1) = b_j; empty for order 1."""
    if not r:
        return []
    nodes = torch.tensor(r, dtype=torch.float64)
    powers = torch.stack([nodes**j for j in range(len(r))])
    return torch.linalg.solve(powers, torch.tensor(b, dtype=torch.float64)).tolist()


def _predict(
    c: _Coefficients, x: Tensor, denoised: list[Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The predicted x, and the function that corrects it with the denoised latents found there."""
    last = denoised[-1]
    base = c.decay * x - c.phi_1 * last
    differences = [
        (denoised[-1 - k] - last) / r for k, r in zip(range(1, len(c.r)), c.r, strict=False)
    ]

    def corrected(new: Tensor) -> Tensor:
        return base - c.b_h * _weighted([*differences, new - last], c.corrector)

    return base - c.b_h * _weighted(differences, c.predictor), corrected


def _weighted(terms: list[Tensor], weights: list[float]) -> Tensor | float:
    return sum((w * t for w, t in zip(weights, terms, strict=True)), 0.0)
