"""Features that are made from a message: by optimisation, for a pool, in one pass. No picture comes in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.crafting.craft import outer_update
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.crafting.parts import Parts
from crafter_pl.crafting.settings import CraftNets, CraftSettings, CraftState
from crafter_pl.progress import Steps

_TOGETHER = 64  # features that are crafted at a time
_KEEP = 100  # steps of training one pass after which it is kept
_PULL = 1e-3  # of a feature towards the prior face's, as a weight of the mean square, in one pass


def craft_message(
    nets: CraftNets,
    z: Tensor,
    codewords: Tensor,
    needed: Tensor,
    settings: CraftSettings,
    need_weight: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """A feature to which the cloud answers a codeword where it is needed, and elsewhere as for a prior face.

    Beyond the paper. Minimises from ``F = Enc(G(z))`` the divergence of the cloud's answers, summed over the
    attributes with ``need_weight`` for those that are needed and 1 for the others. The result is a function
    of the codeword and of ``z``.

    Args:
        nets: frozen nets.
        z: latents of the prior faces to start from, ``(N, Z)``.
        codewords: statistics ``(N, S)``, see `crafter_pl.answers`.
        needed: columns of the cloud's answers that the codewords are of, int64 ``(S,)``.
        settings: ``steps``, ``lr`` and ``update`` are used.
        need_weight: see above.

    Returns:
        The features ``(N, C, h, w)``, and the mean divergence over the needed attributes, nats ``(N,)``.
    """
    start, targets = _aims(nets, z, codewords, needed)
    state = CraftState(start, start, z, start.new_zeros(len(start)))
    for _ in range(settings.steps):
        with torch.enable_grad():
            variable = state.features.detach().clone().requires_grad_()
            loss = _cross(nets, variable, targets, needed, need_weight).sum()
            (gradient,) = torch.autograd.grad(loss, variable)
        outer_update(state, gradient, settings)
    return state.features, divergence_at(nets, state.features, targets, needed)


@torch.no_grad()
def _aims(nets: CraftNets, z: Tensor, codewords: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """The prior faces' features, and what the cloud is to answer ``(N, A)``."""
    start = nets.render(z)
    targets = nets.answers.statistic(nets.classifier(start))
    targets[:, needed] = codewords.to(targets)
    return start, targets


def _cross(nets: CraftNets, features: Tensor, targets: Tensor, needed: Tensor, need_weight: float) -> Tensor:
    weights = torch.ones_like(targets[0]).index_fill_(0, needed, need_weight)
    return (nets.answers.terms(nets.classifier(features), targets) * weights).sum(1)


@torch.no_grad()
def divergence_at(nets: CraftNets, features: Tensor, targets: Tensor, needed: Tensor) -> Tensor:
    """Of the cloud's needed answers from their targets ``(N,)``, see `Answers.pooled`; of attributes nats."""
    said, meant, answers = nets.classifier(features)[:, needed], targets[:, needed], nets.answers.part(needed)
    return answers.pooled(answers.terms(said, meant) - answers.terms_at(meant))


def make_pool(
    craft: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    codewords: Tensor,
    rows: int,
    latent_dim: int,
    parts: Parts | None = None,
) -> tuple[Tensor, float]:
    """Features for each message, of keyed prior faces: the same wherever it is made.

    Args:
        craft: `craft_message` of codewords ``(N, S)`` and latents ``(N, Z)``.
        codewords: ``(M, S)``.
        rows: R, features for each.
        latent_dim: Z.
        parts: of an earlier try, which are taken as they are.

    Returns:
        ``(M, R, C, h, w)`` on the CPU, and the mean divergence.
    """
    count, parts = len(codewords) * rows, parts or Parts(None)
    shown, made, off = Steps("features for the pool", count, unit="features"), [], []
    for index in torch.arange(count).split(_TOGETHER):
        name = f"pool-{int(index[0]):06d}"
        if (part := parts.read(name)) is None:
            latents = keyed_normal(0, index, latent_dim)
            part = [own.cpu() for own in craft(codewords[index // rows], latents)]
            parts.write(name, part)
        made.append(part[0])
        off.append(part[1])
        shown.step(len(index))
    shown.close()
    pool = torch.cat(made).float()
    return pool.view(len(codewords), rows, *pool.shape[1:]), float(torch.cat(off).mean())


def train_pass(
    nets: CraftNets,
    net: nn.Module,
    codewords: Tensor,
    needed: Tensor,
    latent_dim: int,
    steps: int,
    need_weight: float = 10.0,
    parts: Parts | None = None,
) -> float:
    """Train a net that does in one pass what `craft_message` does, on messages and prior faces alone.

    Args:
        nets: frozen nets.
        net: ``Enc(G(z))`` and a codeword -> a feature, see `CraftingNet`; trained in place.
        codewords: ``(M, S)``, on the nets' device; drawn evenly.
        needed: columns, int64 ``(S,)``.
        latent_dim: of ``z``.
        steps: batches of 32.
        need_weight: see `craft_message`.
        parts: of an earlier try, from which it goes on.

    Returns:
        The mean divergence over the last tenth of the steps, nats.
    """
    net.requires_grad_(True).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    shown, off, parts = Steps("training the one pass", steps, unit="steps"), [], parts or Parts(None)
    generator, begin = torch.Generator().manual_seed(0), 0
    if (kept := parts.read("pass")) is not None:
        begin, off = kept["step"], kept["off"]
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        generator.set_state(kept["generator"])
        shown.step(begin)
    for step in range(begin, steps):
        chosen = torch.randint(len(codewords), (32,), generator=generator).to(codewords.device)
        z = torch.randn(32, latent_dim, generator=generator).to(codewords.device)
        start, targets = _aims(nets, z, codewords[chosen], needed)
        with torch.enable_grad():
            made = net(start, codewords[chosen].to(start))
            loss = _cross(nets, made, targets, needed, need_weight).mean() + _PULL * F.mse_loss(made, start)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if step >= 0.9 * steps:
            off.append(float(divergence_at(nets, made.detach(), targets, needed).mean()))
        shown.step()
        if (step + 1) % _KEEP == 0:
            states = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            parts.write("pass", {**states, "generator": generator.get_state(), "step": step + 1, "off": off})
    shown.close()
    net.requires_grad_(False).eval()
    return sum(off) / max(len(off), 1)
