"""Second-order products of the inner objective ``L(F, z) = c * ||F - e(z)||^2 + rho * ||z||^2``.

``J u`` is the derivative of ``w -> J^T w`` (backward through a backward pass recorded once) and ``J^T w`` a
backward pass through the same recorded forward pass. Where the nets are frozen (`crafter_pl.nets.freeze`)
each costs as much as a forward pass. `torch.func.jvp` costs twice that, and tracing by `torch.func.linearize`
0.7 to 0.9 s at every new z (dev/LOG.md).
"""

from functools import cached_property

import torch
from torch import Tensor

from crafter_pl.crafting.inversion import Recorded, Render, inner_loss, record


class Curvature:
    """Second-order products of the inner objective at one point, on a graph recorded once.

    Attributes:
        loss: the objective there, ``(N,)``, with its graph.
        products: how many there have been.
    """

    def __init__(
        self, render: Render, target: Tensor, z: Tensor | Recorded, rho: float, scale: float
    ) -> None:
        self.products = 0
        self._here, self._scale = record(render, z), scale
        with torch.enable_grad():
            self.loss = inner_loss(self._here.rendered, target.detach(), self._here.z, rho, scale)

    @cached_property
    def _gradient(self) -> Tensor:
        """``dL/dz``, with its graph."""
        with torch.enable_grad():
            return torch.autograd.grad(self.loss.sum(), self._here.z, create_graph=True)[0]

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor]:
        """``J^T w`` with its graph, and w, of which it is a linear function."""
        with torch.enable_grad():
            w = torch.zeros_like(self._here.rendered, requires_grad=True)
            return torch.autograd.grad(self._here.rendered, self._here.z, w, create_graph=True)[0], w

    def hessian(self, u: Tensor) -> Tensor:
        """Return ``d2L/dz2 u`` by double backward."""
        self.products += 1
        return torch.autograd.grad(self._gradient, self._here.z, u, retain_graph=True)[0]

    def forward(self, u: Tensor) -> Tensor:
        """Return ``J u``, the shape of F."""
        return torch.autograd.grad(*self._transposed, u, retain_graph=True)[0]

    def transposed(self, w: Tensor) -> Tensor:
        """Return ``J^T w``, ``(N, Z)``."""
        return torch.autograd.grad(self._here.rendered, self._here.z, w, retain_graph=True)[0]

    def mixed(self, y: Tensor) -> Tensor:
        """Return ``-y . d2L/dzdF = 2c * J y``."""
        return 2 * self._scale * self.forward(y)
