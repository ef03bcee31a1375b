"""Small inner problems whose implicit gradient a dense solve gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev

from crafter_pl.crafting.inversion import Render, inner_loss

F64 = torch.float64


def smooth_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12)).double().requires_grad_(False)


def conv_net() -> nn.Sequential:
    """Return a small frozen generator and encoder: transposed convolution, BatchNorm, ReLU, sigmoid."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(6, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4))),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid()),
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)),
    ).double()
    with torch.no_grad():
        net.train()(2 * torch.randn(256, 6, dtype=F64))
        net[-1].weight.mul_(120)  # the Hessian's eigenvalues: 1 to 25
    return net.eval().requires_grad_(False)


NETS = {"smooth": (smooth_net, 5), "conv": (conv_net, 6)}


def problem(name: str, count: int = 5) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """Return a net, features that it can only nearly reach, latents near their inversions, and dL_p/dz."""
    make, dim = NETS[name]
    net = make()
    torch.manual_seed(1)
    z = torch.randn(count, dim, dtype=F64)
    target = net(z)
    target = target + 0.3 * target.std() * torch.randn_like(target)
    return net, target, z + 0.05 * torch.randn_like(z), torch.randn_like(z)


def dense_matrix(
    net: Render, target: Tensor, z: Tensor, *, rho: float, damping: float, scale: float, gauss: bool
) -> Tensor:
    """Return the solver's matrix of one sample, ``(Z, Z)``, by torch.func."""
    if gauss:
        jacobian = jacrev(lambda q: net(q[None])[0].flatten())(z)
        matrix = 2 * scale * jacobian.T @ jacobian
        matrix = matrix + 2 * rho * torch.eye(len(z), dtype=F64)
    else:
        matrix = hessian(lambda q: inner_loss(net(q[None]), target[None], q[None], rho, scale)[0])(z)
    return matrix + damping * torch.eye(len(z), dtype=F64)


def dense(
    net: Render,
    target: Tensor,
    z: Tensor,
    v: Tensor,
    *,
    rho: float,
    damping: float,
    scale: float,
    gauss: bool,
) -> tuple[Tensor, Tensor]:
    """Return the exact hypergradient and the matrices, the mixed derivative by torch.func as well."""
    grads, matrices = [], []
    for f, q, w in zip(target, z, v, strict=True):
        a = dense_matrix(net, f, q, rho=rho, damping=damping, scale=scale, gauss=gauss)

        def gradient(f_: Tensor, q: Tensor = q) -> Tensor:
            return torch.func.grad(lambda x: inner_loss(net(x[None]), f_[None], x[None], rho, scale)[0])(q)

        mixed = jacrev(gradient)(f)
        grads.append(-torch.tensordot(torch.linalg.solve(a, w), mixed, dims=1))
        matrices.append(a)
    return torch.stack(grads), torch.stack(matrices)


def relative(a: Tensor, b: Tensor) -> float:
    """Return the largest relative error over samples."""
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max().item()


SETTINGS = {
    "neumann": {"alpha": 0.02, "terms": 30, "rho": 0.1},
    "cg": {"damping": 0.5, "iterations": 6, "rho": 0.1},
    "gauss_newton": {"damping": 0.05, "iterations": 6, "rho": 0.1},
    "unroll": {"steps": 12, "lr": 0.01, "rho": 0.1},
}
