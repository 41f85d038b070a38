"""Optimiser of the toy models: Muon on hidden matrices, AdamW on the rest, fp32 masters and EMA.

The models compute in bf16, exactly as they are shipped; what is optimised is an fp32 copy. Nothing
in `step` waits for the device, so a whole training step can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Newton-Schulz coefficients of Muon (K. Jordan, kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
EMA_EVERY = 8  # steps
PLAIN_RATE = 0.3


class Optimizer:
    """Updates a model in place from its gradients.

    `muon_names` are the weights that get Muon, convolutions as matrices [out, rest], its steps
    scaled to the size of AdamW's (arXiv 2502.16982); AdamW takes PLAIN_RATE times their rate.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_names: set[str],
        *,
        weight_decay: float = 0.01,
        ema_decay: float = 0.999,
        max_grad_norm: float = 1.0,
    ) -> None:
        named = dict(model.named_parameters())
        self.names = list(named)
        self.params = list(named.values())
        self.masters = [p.detach().float().clone() for p in self.params]
        self.ema = [m.clone() for m in self.masters]
        self.weight_decay, self.ema_decay = weight_decay, ema_decay
        self.max_grad_norm = max_grad_norm
        device = self.params[0].device
        # Tensors, so that a recorded step follows the schedule.
        self._rate = torch.zeros((), device=device)
        self._plain_rate = torch.zeros((), device=device)
        self.steps = 0

        muon = [i for i, name in enumerate(self.names) if name in muon_names]
        self._muon = _by_matrix_shape(self.masters, muon)
        self._momentum = {shape: self._stack(self.masters, shape) * 0 for shape in self._muon}
        self._plain = [i for i in range(len(self.names)) if i not in set(muon)]
        self._adamw = torch.optim.AdamW(
            [self.masters[i] for i in self._plain],
            lr=self._plain_rate,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps to come."""
        self._rate.fill_(rate)
        self._plain_rate.fill_(PLAIN_RATE * rate)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        """One update; grads in the order of the model's parameters."""
        grads = [g.float() for g in grads]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        torch._foreach_mul_(grads, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1))
        for i in self._plain:
            self.masters[i].grad = grads[i]
        self._adamw.step()
        for shape, rows in self._muon.items():
            masters = [self.masters[i] for i in rows]
            torch._foreach_mul_(masters, 1 - self._rate * self.weight_decay)
            update = self._muon_update(self._stack(grads, shape), self._momentum[shape])
            update = update * self._rate
            deltas = [u.view_as(m) for u, m in zip(update.unbind(0), masters, strict=True)]
            torch._foreach_sub_(masters, deltas)
        torch._foreach_copy_(self.params, self.masters)

    @torch.no_grad()
    def track_average(self) -> None:
        """Move the EMA; call after every step, outside of a CUDA graph."""
        self.steps += 1
        if self.steps % EMA_EVERY == 0:
            decay = min(self.ema_decay, (1 + self.steps) / (100 + self.steps))
            torch._foreach_lerp_(self.ema, self.masters, 1 - decay**EMA_EVERY)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Weights and their EMA, fp32 by parameter name."""
        return {
            "weights": dict(zip(self.names, self.masters, strict=True)),
            "ema": dict(zip(self.names, self.ema, strict=True)),
        }

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Take over weights and EMA of a run; its moments start afresh."""
        for i, name in enumerate(self.names):
            self.masters[i].copy_(weights[name])
            self.ema[i].copy_(ema[name])
        torch._foreach_copy_(self.params, self.masters)

    def _stack(self, tensors: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        return torch.stack([tensors[i].reshape(shape) for i in self._muon[shape]])

    @staticmethod
    def _muon_update(grad: Tensor, momentum: Tensor) -> Tensor:
        momentum.lerp_(grad, 1 - MOMENTUM)
        update = orthogonalise(grad.lerp(momentum, MOMENTUM))
        return update.float() * (0.2 * max(grad.shape[-2:]) ** 0.5)


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Matrices [N, m, n] with all singular values moved near 1, in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _by_matrix_shape(
    tensors: Sequence[Tensor], rows: list[int]
) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in rows:
        groups[(tensors[i].shape[0], tensors[i][0].numel())].append(i)
    return dict(groups)
