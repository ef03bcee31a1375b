"""Second-order products of the inner objective ``L(F, z) = c * ||F - e(z)||^2 + rho * ||z||^2``.

``J u`` is the derivative of ``w -> J^T w`` (backward through a backward pass recorded once) and ``J^T w`` a
backward pass through the same recorded forward pass. Where the nets are frozen (`crafter_pl.nets.freeze`)
each costs as much as a forward pass. `torch.func.jvp` costs twice that, and tracing by `torch.func.linearize`
0.7 to 0.9 s at every new z (docs/LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from crafter_pl.crafting.inversion import Recorded, Render, Scale, data_weight, inner_loss, record


class Curvature:
    """Second-order products of the inner objective at one point, on a graph recorded once."""

    def __init__(
        self, render: Render, target: Tensor, z: Tensor | Recorded, rho: float, scale: Scale
    ) -> None:
        self.products = 0
        self._rho = rho
        self._weight = data_weight(scale, target)
        here = record(render, z)
        self._z, self._rendered = here.z, here.rendered
        self._target = target.detach()
        self._scale = scale
        self._gradient: Tensor | None = None
        self._probe: Tensor | None = None
        self._transposed: Tensor | None = None

    def loss(self) -> Tensor:
        """Return the inner objective at this point, ``(N,)``."""
        with torch.no_grad():
            return inner_loss(self._rendered, self._target, self._z, self._rho, self._scale)

    def hessian(self, u: Tensor) -> Tensor:
        """Return ``d2L/dz2 u`` by double backward."""
        if self._gradient is None:
            with torch.enable_grad():
                loss = inner_loss(self._rendered, self._target, self._z, self._rho, self._scale)
                (self._gradient,) = torch.autograd.grad(loss.sum(), self._z, create_graph=True)
        self.products += 1
        if not self._gradient.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(
            self._gradient, self._z, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return product

    def forward(self, u: Tensor) -> Tensor:
        """Return ``J u``, the shape of F."""
        if self._transposed is None:
            with torch.enable_grad():
                self._probe = torch.zeros_like(self._rendered, requires_grad=True)
                graph = torch.autograd.grad(self._rendered, self._z, self._probe, create_graph=True)
            self._transposed = graph[0]
        assert self._probe is not None
        return torch.autograd.grad(self._transposed, self._probe, u, retain_graph=True)[0]

    def transposed(self, w: Tensor) -> Tensor:
        """Return ``J^T w``, ``(N, Z)``."""
        return torch.autograd.grad(self._rendered, self._z, w, retain_graph=True)[0]

    def mixed(self, y: Tensor) -> Tensor:
        """Return ``-y . d2L/dzdF = 2c * J y``."""
        return 2 * self._weight * self.forward(y)
