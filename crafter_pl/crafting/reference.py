"""The released algorithm, reproduced for comparison; this package's own is `crafter_pl.crafting.craft`.

Written from the facts of `Crafter_protection/featureCrafter.py` and `Image2ID/WhiteBoxAttack/attacker.py` of
the authors' repository (MIT): their objectives, constants and order of operations. Kept as they are, on
purpose:

- The inner solve descends ``100 * ||F - e(z)|| - 100 * mean D(G(z))``, with the *un-squared* norm of the
  whole batch and the GAN's own critic D as a prior; the hypergradient differentiates
  ``2000 / (n * d) * ||F - e(z)||^2`` without a prior.
- Both are batch-coupled (n samples of d entries each): the Hessian, and with it the balance
  of privacy and utility, moves with the batch size, because alpha, the step of the series, does not.
- The critic between reconstructions and prior samples is fresh for every batch; prior samples are drawn once.
- The inversion starts cold from the amortizer at each outer step.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crafter_pl.crafting.implicit import neumann
from crafter_pl.nets.critic import gradient_penalty

INNER_WEIGHT = 100.0
"""Factor of both terms of the inner solve."""
HYPERGRADIENT_WEIGHT = 2000.0
"""Factor of the mean squared feature error that the hypergradient differentiates."""
OUTER_WEIGHT = 100.0
"""Factor of the privacy and of the utility loss."""
PENALTY_WEIGHTS = (20.0, 40.0)
"""Gradient penalty's lambda, usually and while the penalty is above 1."""


def reference_inversion(
    encoder: nn.Module,
    generator: nn.Module,
    amortizer: nn.Module,
    features: Tensor,
    *,
    prior_critic: nn.Module | None,
    steps: int = 80,
    lr: float = 5e-3,
    momentum: float = 0.9,
) -> Tensor:
    """Invert a batch as the release does: momentum descent from the amortizer's start, ``(N, Z)``.

    Args:
        encoder: images ``(N, 3, H, W)`` in [0, 1] to features; frozen, in eval mode, like the others.
        generator: latents to images.
        amortizer: features to latents.
        features: ``(N, C, h, w)``.
        prior_critic: the GAN's critic, images to ``(N,)``; None leaves the prior term out.
        steps: gradient steps.
        lr: their size, on 100 times the batch's norm.
        momentum: their momentum.
    """
    target = features.detach()
    with torch.no_grad():
        z = amortizer(target)
    velocity = torch.zeros_like(z)
    for _ in range(steps):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            images = generator(z)
            loss = torch.linalg.vector_norm(encoder(images) - target)
            if prior_critic is not None:
                loss = loss - prior_critic(images).mean()
            (gradient,) = torch.autograd.grad(INNER_WEIGHT * loss, z)
        velocity = momentum * velocity + gradient
        z = z.detach() - lr * velocity
    return z.detach()


def reference_critic_step(
    critic: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, mix: Tensor
) -> None:
    """Train the critic on one batch.

    Args:
        critic: images ``(n, 3, H, W)`` to ``(n,)``.
        optimizer: over its parameters.
        real: prior samples, ``(n, 3, H, W)``.
        fake: reconstructions, ``(n, 3, H, W)``.
        mix: ``(n,)`` in [0, 1], share of ``real`` in the pictures where the gradient is penalised.
    """
    with torch.enable_grad():
        emd = critic(fake).mean() - critic(real).mean()
        penalty = gradient_penalty(critic, real, fake, mix.view(-1, 1, 1, 1))
        weight = PENALTY_WEIGHTS[1] if penalty.item() > 1 else PENALTY_WEIGHTS[0]
        optimizer.zero_grad()
        (emd + weight * penalty).backward()
    optimizer.step()


def reference_hypergradient(
    encoder: nn.Module,
    generator: nn.Module,
    critic: nn.Module,
    features: Tensor,
    original: Tensor,
    z: Tensor,
    *,
    beta: float,
    alpha: float = 1e-3,
    terms: int = 120,
) -> Tensor:
    """Return the release's gradient: a batch-scaled Neumann hypergradient plus the direct utility term.

    With n samples of d entries, ``L_p = -mean critic(G(z))``, ``L_u = ||F - F_0||^2 / (n * d)`` and
    ``L_inv = 2000 / (n * d) * ||F - e(z)||^2`` the gradient is
    ``100 * beta * dL_u/dF - v . S . d2L_inv/dzdF`` with ``v = 100 * dL_p/dz`` and
    ``S = alpha * sum_{j<=terms} (I - alpha * d2L_inv/dz2)^j``.

    Args:
        encoder: images ``(N, 3, H, W)`` in [0, 1] to features.
        generator: latents to images.
        critic: images to ``(N,)``.
        features: F, ``(N, C, h, w)``.
        original: F_0, the unprotected features.
        z: inversion of F, ``(N, Z)``.
        beta: weight of utility.
        alpha: step of the series.
        terms: its Hessian products.
    """
    count, entries = len(features), features[0].numel()
    with torch.enable_grad():
        latent = z.detach().clone().requires_grad_()
        privacy = -critic(generator(latent)).mean()
        (v,) = torch.autograd.grad(OUTER_WEIGHT * privacy, latent)
    implicit = neumann(
        lambda latents: encoder(generator(latents)),
        features,
        z,
        v,
        alpha=alpha,
        terms=terms,
        scale=HYPERGRADIENT_WEIGHT / (count * entries),
    )
    direct = OUTER_WEIGHT * beta * 2 / (count * entries) * (features.detach() - original.detach())
    return direct + implicit.grad


def reference_craft(
    encoder: nn.Module,
    generator: nn.Module,
    amortizer: nn.Module,
    features: Tensor,
    *,
    beta: float,
    critic: Callable[[], nn.Module],
    prior_critic: nn.Module | None,
    rng: torch.Generator,
    steps: int = 450,
    lr: float = 0.01,
    inner_steps: int = 80,
    inner_lr: float = 5e-3,
    inner_momentum: float = 0.9,
    critic_steps: int = 10,
    critic_batch: int = 32,
    critic_lr: float = 5e-4,
    alpha: float = 1e-3,
    terms: int = 120,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Craft a batch as the release does, with its constants as defaults (batches of 128, 64x64 CelebA).

    Each step: invert from the amortizer, train the critic, take the hypergradient, one Adam step on the
    features.

    Args:
        encoder: images ``(N, 3, H, W)`` in [0, 1] to features; frozen, in eval mode, like generator and
            amortizer.
        generator: latents to images.
        amortizer: features to latents.
        features: unprotected features, ``(N, C, h, w)``, the whole batch that will be coupled.
        beta: weight of utility.
        critic: makes the batch's fresh critic (images to ``(N,)``), on the device of ``features``.
        prior_critic: the GAN's critic for the inner prior term (the release has one); None leaves the term
            out.
        rng: CPU generator of the prior samples and of the critic's batches.
        steps: outer steps.
        lr: Adam's, on the features.
        inner_steps: inversion steps an outer step.
        inner_lr: their size.
        inner_momentum: their momentum.
        critic_steps: critic updates an outer step.
        critic_batch: pictures of either kind an update, drawn with replacement.
        critic_lr: Adam's, on the critic.
        alpha: step of the Neumann series.
        terms: its Hessian products.
        on_step: called with (step, the features after it).

    Returns:
        The features ``(N, C, h, w)`` after the last step (the release writes every third step's and names
        none final); the last step's inversion ``(N, Z)``, of the features before that step.
    """
    original = features.detach()
    count, device = len(original), original.device
    crafted = original.clone().requires_grad_()
    optimizer = torch.optim.Adam([crafted], lr=lr)
    potential = critic()
    critic_optimizer = torch.optim.Adam(potential.parameters(), lr=critic_lr)
    with torch.no_grad():
        z = amortizer(original)
    prior = torch.randn(z.shape, generator=rng, dtype=z.dtype).to(device)

    def pick(latents: Tensor) -> Tensor:
        rows = torch.randint(0, count, (critic_batch,), generator=rng)
        with torch.no_grad():
            return generator(latents[rows.to(device)])

    for step in range(steps):
        z = reference_inversion(
            encoder,
            generator,
            amortizer,
            crafted,
            prior_critic=prior_critic,
            steps=inner_steps,
            lr=inner_lr,
            momentum=inner_momentum,
        )
        for _ in range(critic_steps):
            real, fake = pick(prior), pick(z)
            mix = torch.rand(critic_batch, generator=rng, dtype=real.dtype).to(device)
            reference_critic_step(potential, critic_optimizer, real, fake, mix)
        crafted.grad = reference_hypergradient(
            encoder, generator, potential, crafted, original, z, beta=beta, alpha=alpha, terms=terms
        )
        optimizer.step()
        if on_step is not None:
            on_step(step, crafted.detach())
    return crafted.detach(), z
