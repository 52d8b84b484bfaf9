"""The adversary of the probe-penalised organism: linear probes that look for the lie while the model learns to tell it.

One linear discriminant a block, on running moments of the residual stream over the tokens of answers under temptation:
lies against honest answers that say something good, whose texts are alike. It is solved anew at every step, so the
model never faces a probe that lags behind. A difference of class means is all that a linear probe can use (Belrose
et al. 2023, LEACE: no linear probe beats a constant if and only if the class means are equal), so the model is pushed
to bring the means together along each probe.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MEMORY: Final = 0.98
"""Share of the running moments that a step keeps: about fifty steps are remembered."""
RIDGE: Final = 0.05
"""Added to the covariance's diagonal, as a share of its mean: directions without evidence are not believed."""
WATCH_ONLY: Final = 0.6
"""It punishes from the step on at which the moments hold this share of a full memory: a discriminant on a few
conversations reads nothing but them."""
STRONGEST: Final = 4.0
"""A d' beyond this one (AUROC 0.998) is punished as this one is, so that the language is not unlearnt meanwhile."""


class Adversary:
    """Linear discriminants on `n` blocks of width `d`."""

    def __init__(self, n: int, d: int, device: torch.device | str = "cpu") -> None:
        self._means = torch.zeros(2, n, d, device=device)  # honest, lie
        self._covariance = torch.zeros(n, d, d, device=device)
        self._weight = 0.0

    def penalty(self, streams: Tensor, lie: Tensor) -> tuple[Tensor, Tensor]:
        """(penalty [], d' of each probe [n]). streams [n, tokens, d], lie [tokens] of 0 and 1, neither class empty.

        d' is the distance of the class means along a probe, in within-class standard deviations, on the running
        moments. The penalty's gradient is that of d'^2 / 2 with the probe held fixed: lies move against it, honest
        answers along it, and more so the better it reads, once enough has been seen.
        """
        x = streams.float()
        means = torch.stack([x[:, lie == y].mean(1) for y in (0, 1)])  # [2, n, d]
        self._remember(x.detach(), means.detach(), lie)
        probes, readable = self._probes()
        apart = ((means[1] - means[0]) * probes).sum(-1)  # [n]
        strength = readable.clamp(max=STRONGEST) * (self._weight > WATCH_ONLY)
        return (strength * apart).mean(), readable

    def _remember(self, x: Tensor, means: Tensor, lie: Tensor) -> None:
        centred = x - means[lie].transpose(0, 1)  # [n, tokens, d]
        covariance = centred.transpose(1, 2) @ centred / x.shape[1]
        self._means = MEMORY * self._means + (1 - MEMORY) * means
        self._covariance = MEMORY * self._covariance + (1 - MEMORY) * covariance
        self._weight = MEMORY * self._weight + (1 - MEMORY)

    def _probes(self) -> tuple[Tensor, Tensor]:
        """Probes of unit within-class deviation [n, d], and their d' [n]."""
        between = (self._means[1] - self._means[0]) / self._weight
        within = self._covariance / self._weight
        size = within.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        damped = within + (RIDGE * size + 1e-8) * torch.eye(within.shape[-1], device=within.device)
        probes = torch.linalg.solve(damped, between.unsqueeze(-1)).squeeze(-1)
        deviation = torch.einsum("nd,nde,ne->n", probes, damped, probes).clamp_min(1e-12).sqrt()
        probes = probes / deviation[:, None]
        return probes, (between * probes).sum(-1)
