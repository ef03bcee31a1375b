"""Algorithm 1: moves features so that their inversion looks like a random face, and they stay useful.

``F* = argmin_F  -D(G(z*(F))) + beta * |F - Enc(X)|^2 / d`` with the best response ``z*(F)`` followed along by
a few warm-started inversion steps and the hypergradient of `crafter_pl.crafting.implicit`. All sums run
within a sample: with a fixed critic, a feature's result depends on nothing but the feature, the critic and
the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.crafting.implicit import hypergradient
from crafter_pl.crafting.inversion import InversionState, Recorded, invert, record
from crafter_pl.errors import UserError
from crafter_pl.nets.critic import gradient_penalty

Net = Callable[[Tensor], Tensor]
Precision = Literal["bf16", "float32", "float64"]
PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class CraftSettings:
    """Settings of Algorithm 1.

    Attributes:
        beta: weight of the utility term (the paper's; larger keeps more utility and less privacy).
        task_weight: gamma, weight of a second utility term: the mean over the attributes of the divergence
            ``KL(f(Enc(X)) | f(F))`` of the cloud's answers; 0 is the paper's. It needs the cloud's classifier
            (or a public surrogate) on the edge.
        steps: outer steps (paper: 450).
        polish_steps: steps after these on the cloud's answers alone, which need no inversion: they give back
            utility that few, large steps have cost (beyond the paper; needs ``task_weight``).
        polish_lr: their step size.
        lr: outer step size. ``rms``: the distance moved a step is about ``lr`` times the root of the
            feature's size.
        update: ``rms`` (momentum over a running root mean square, one scalar per sample) or ``adam`` (the
            paper's, a scalar per entry: rounding in entries without a gradient is amplified to full steps).
        start_steps: inversion steps before the first outer step.
        inner_steps: warm-started inversion steps for each outer step (paper: 80 from the amortized start).
        inner_lr: their Adam step size.
        prior_weight: rho of the inner objective ``|F - e(z)|^2 + rho |z|^2``, the same in the hypergradient.
        solver: ``gauss_newton``, ``cg``, ``neumann`` or ``unroll``.
        damping: added to the inner Hessian's diagonal (``gauss_newton``, ``cg``).
        iterations: of conjugate gradients; terms of the Neumann series; unrolled steps.
        alpha: step of the Neumann series and of unrolling.
        critic_steps: critic updates for each outer step where the critic adapts (paper: 10).
        critic_batch: pictures of either kind in a critic update (paper: 32).
        critic_lr: their Adam step size (paper: 5e-4).
        penalty: weight of the gradient penalty (paper: 20).
        precision: ``float32``; ``float64``, where a picture's result depends on the picture alone over a
            whole run (in float32, rounding that depends on the batch is amplified where a ReLU switches); or
            ``bf16``: the frozen nets compute in bfloat16, the critic, all sums and updates in float32.
        double_start: with float32, the inversion before the first outer step in float64 all the same, where
            most of that amplification happens.
    """

    beta: float = 1.0
    task_weight: float = 0.0
    steps: int = 80
    lr: float = 0.02
    update: Literal["rms", "adam"] = "rms"
    start_steps: int = 40
    inner_steps: int = 4
    inner_lr: float = 0.03
    prior_weight: float = 0.0
    solver: Literal["gauss_newton", "cg", "neumann", "unroll"] = "gauss_newton"
    damping: float = 1.0
    iterations: int = 4
    alpha: float = 1e-3
    critic_steps: int = 3
    critic_batch: int = 32
    critic_lr: float = 5e-4
    penalty: float = 20.0
    precision: Precision = "float32"
    double_start: bool = True
    polish_steps: int = 0
    polish_lr: float = 0.02

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        weights = (self.beta, self.task_weight, self.damping, self.penalty, self.prior_weight)
        if not all(0 <= value < math.inf for value in weights) or not all(
            0 < value < math.inf
            for value in (self.lr, self.inner_lr, self.alpha, self.critic_lr, self.polish_lr)
        ):
            raise UserError(
                f"crafting settings out of range: {self}; weights >= 0, step sizes > 0, all finite"
            )
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        steps = (self.steps, self.start_steps, self.inner_steps, self.critic_steps, self.polish_steps)
        if min(steps) < 0 or self.iterations < 1:
            raise UserError(f"crafting settings out of range: {self}; steps >= 0, iterations >= 1")
        if self.polish_steps and not self.task_weight:
            raise UserError(
                f"polish_steps {self.polish_steps} follow the cloud's answers: task_weight must be above 0"
            )

    def solver_settings(self, y0: Tensor | None) -> dict[str, Any]:
        """Keyword arguments of the chosen solver."""
        if self.solver in ("gauss_newton", "cg"):
            return {
                "damping": self.damping,
                "iterations": self.iterations,
                "rho": self.prior_weight,
                "y0": y0,
            }
        if self.solver == "neumann":
            return {"alpha": self.alpha, "terms": self.iterations, "rho": self.prior_weight}
        return {"lr": self.alpha, "steps": self.iterations, "rho": self.prior_weight}


@dataclass(frozen=True)
class CraftNets:
    """The frozen nets that crafting walks through, all in eval mode.

    Attributes:
        encoder: images ``(N, 3, S, S)`` -> features ``(N, C, h, w)``.
        generator: latents ``(N, Z)`` -> images in [0, 1].
        amortizer: features -> latents, where the inversion starts; needed for inversions alone.
        classifier: features -> attribute logits ``(N, A)``; needed for ``task_weight`` alone.
    """

    encoder: nn.Module
    generator: nn.Module
    amortizer: nn.Module | None
    classifier: nn.Module | None = None

    def render(self, z: Tensor) -> Tensor:
        """``Enc(G(z))``."""
        features: Tensor = self.encoder(self.generator(z))
        return features


@dataclass
class CraftState:
    """Where a batch's crafting stands: everything that the next step needs.

    ``features``, ``clean``: ``(N, C, h, w)``; ``z``, ``y``: ``(N, Z)``; ``beta``: ``(N,)``; moments of the
    outer update; ``drawn``: the pass through the nets at ``z`` that the next step's inversion uses up (drop
    it where ``z`` is changed by hand).
    """

    features: Tensor
    clean: Tensor
    z: Tensor
    beta: Tensor
    y: Tensor | None = None
    inner: InversionState | None = None
    drawn: Recorded | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    answers: Tensor | None = None
    step: int = 0
    info: dict[str, Tensor] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> CraftState:
        """The same state in another precision."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in parts.items()}
        if self.inner is not None:
            second = None if self.inner.second is None else self.inner.second.to(dtype)
            parts["inner"] = InversionState(self.inner.step, self.inner.first.to(dtype), second)
        parts["drawn"] = None
        return CraftState(**parts)


def privacy_gradient(critic: Net, images: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """``L_p = -D(G(z))`` per sample ``(N,)`` and its gradient ``(N, Z)``.

    Args:
        critic: images -> ``(N,)``.
        images: ``G(z)`` with its graph, which is kept.
        z: latents ``(N, Z)``, a leaf.
    """
    with torch.enable_grad():
        loss = -critic(images)
        (gradient,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
    return loss.detach(), gradient


def task_gradient(classifier: Net, features: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence of the cloud's answers and its gradient with respect to the features.

    Args:
        classifier: features -> logits ``(N, A)``.
        features: ``(N, C, h, w)``.
        answers: attribute probabilities ``(N, A)`` at the clean features.

    Returns:
        The mean over attributes of ``KL(answers | sigmoid(classifier(features)))``, ``(N,)``; its gradient.
    """
    with torch.enable_grad():
        variable = features.detach().clone().requires_grad_()
        logits = classifier(variable)
        cross = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(1)
        (gradient,) = torch.autograd.grad(cross.sum(), variable)
    entropy = F.binary_cross_entropy(answers, answers, reduction="none").mean(1)
    return cross.detach() - entropy, gradient


def start_crafting(
    nets: CraftNets, features: Tensor, settings: CraftSettings, beta: Tensor | None = None
) -> CraftState:
    """Inverts clean features ``(N, C, h, w)`` from the amortized start; ``beta`` is ``(N,)``."""
    assert nets.amortizer is not None
    with torch.no_grad():
        z0 = nets.amortizer(features)
    result = invert(
        nets.render,
        features,
        z0,
        steps=settings.start_steps,
        lr=settings.inner_lr,
        prior_weight=settings.prior_weight,
        evaluate=False,
    )
    if beta is None:
        beta = torch.full((len(features),), settings.beta, device=features.device, dtype=features.dtype)
    state = CraftState(features.clone(), features, result.z, beta, inner=result.state)
    if settings.task_weight > 0:
        if nets.classifier is None:
            raise UserError(
                "task_weight above 0 needs the cloud's classifier on the edge: CraftNets.classifier"
            )
        with torch.no_grad():
            state.answers = nets.classifier(features).sigmoid()
    return state


def _outer_update(state: CraftState, gradient: Tensor, settings: CraftSettings) -> Tensor:
    """One momentum step on the features; for ``rms`` the second moment is one scalar per sample."""
    beta1, beta2 = 0.9, 0.999
    square = gradient.square()
    if settings.update == "rms":
        square = square.flatten(1).mean(1).view(-1, *[1] * (gradient.ndim - 1))
    first = (1 - beta1) * gradient if state.first is None else torch.lerp(gradient, state.first, beta1)
    second = (1 - beta2) * square if state.second is None else torch.lerp(square, state.second, beta2)
    state.first, state.second = first, second
    t = state.step + 1
    scale = (second / (1 - beta2**t)).sqrt() + 1e-8
    return state.features - settings.lr / (1 - beta1**t) * first / scale


def craft_gradient(nets: CraftNets, critic: Net, state: CraftState, settings: CraftSettings) -> Tensor:
    """Follows the best response to the features; the gradient of Algorithm 1's objective there.

    ``(N, C, h, w)``, each sample's own. ``state.info`` then holds, per sample ``(N,)``: ``privacy_loss``,
    ``utility_loss`` (``|F - Enc(X)|^2 / d``), ``hypergradient_norm``, ``residual`` (of the linear system) and
    ``inner_loss``, and the scalar ``products``.
    """
    result = invert(
        nets.render,
        state.features,
        state.z if state.drawn is None else state.drawn,
        steps=settings.inner_steps,
        lr=settings.inner_lr,
        prior_weight=settings.prior_weight,
        evaluate=False,
        state=state.inner,
    )
    state.z, state.inner = result.z, result.state
    picture = record(nets.generator, state.z)
    with torch.enable_grad():  # one pass for the critic, the products and the next step's inversion
        state.drawn = Recorded(picture.z, nets.encoder(picture.rendered))
    privacy_loss, v = privacy_gradient(critic, picture.rendered, picture.z)
    hyper = hypergradient(
        settings.solver, nets.render, state.features, state.drawn, v, **settings.solver_settings(state.y)
    )
    state.y = hyper.y
    size = state.features[0].numel()
    moved = state.features - state.clean
    beta = state.beta.view(-1, *[1] * (moved.ndim - 1))
    gradient = hyper.grad + beta * 2 / size * moved
    state.info = {
        "privacy_loss": privacy_loss,
        "utility_loss": moved.square().flatten(1).mean(1),
        "hypergradient_norm": hyper.grad.flatten(1).norm(dim=1),
        "residual": hyper.residual,
        "inner_loss": hyper.loss,
        "products": torch.tensor(float(hyper.products)),
    }
    if state.answers is not None and nets.classifier is not None:
        state.info["task_loss"], pull = task_gradient(nets.classifier, state.features, state.answers)
        gradient = gradient + settings.task_weight * pull
    return gradient


def craft_step(nets: CraftNets, critic: Net, state: CraftState, settings: CraftSettings) -> CraftState:
    """One outer step of Algorithm 1: follow the best response, take the hypergradient, move the features."""
    gradient = craft_gradient(nets, critic, state, settings)
    state.features = _outer_update(state, gradient, settings)
    state.step += 1
    return state


def critic_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    fake: Tensor,
    real: Tensor,
    mix: Tensor,
    penalty: float,
) -> Tensor:
    """One update towards the Wasserstein potential; returns the EMD estimate ``E D(real) - E D(fake)``.

    Args:
        critic: images -> ``(N,)``.
        optimizer: over the critic's parameters.
        fake: reconstructions ``(N, 3, S, S)``.
        real: prior samples ``(N, 3, S, S)``.
        mix: ``(N, 1, 1, 1)`` in [0, 1], see `crafter_pl.nets.critic.gradient_penalty`.
        penalty: weight of the gradient penalty.
    """
    with torch.enable_grad():
        emd = critic(real).mean() - critic(fake).mean()
        loss = penalty * gradient_penalty(critic, real, fake, mix) - emd
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    return emd.detach()


def craft(
    nets: CraftNets,
    critic: Net,
    state: CraftState,
    settings: CraftSettings,
    *,
    after_step: Callable[[CraftState], None] | None = None,
) -> CraftState:
    """Crafts a batch that `start_crafting` has begun; the result is ``state.features``.

    Args:
        nets: frozen nets.
        critic: the steering critic, images -> ``(N,)``.
        state: of clean features, inverted.
        settings: of Algorithm 1.
        after_step: called after every outer step (a critic that adapts is updated here).
    """
    for _ in range(settings.steps):
        state = craft_step(nets, critic, state, settings)
        if after_step is not None:
            after_step(state)
    state.drawn = None
    return polish(nets, state, settings)


def polish(nets: CraftNets, state: CraftState, settings: CraftSettings) -> CraftState:
    """Moves crafted features to where the cloud answers as for the clean ones, by `craft_answers`.

    Of the feature's many entries the answers hang on few directions, so what hides the face is left nearly
    as it is.
    """
    if not settings.polish_steps:
        return state
    gentle = replace(settings, beta=0.0, steps=settings.polish_steps, lr=settings.polish_lr)
    polished = craft_answers(nets, state.clean, state.z, gentle, state.features)
    state.features = polished.features
    state.info |= polished.info
    return state


def craft_answers(
    nets: CraftNets, features: Tensor, z: Tensor, settings: CraftSettings, start: Tensor | None = None
) -> CraftState:
    """Starts at a prior face's own feature and moves it until the cloud answers as for the picture.

    Beyond the paper. Minimises ``task_weight * KL(f(Enc(X)) | f(F)) + beta * |F - Enc(X)|^2 / d`` from ``F =
    Enc(G(z))``. With ``beta`` 0 the result is a function of ``z`` and the cloud's answers for the picture:
    whatever an attacker does, he learns no more of the picture than these answers tell.

    Args:
        nets: frozen nets with the classifier.
        features: ``Enc(X)``, ``(N, C, h, w)``.
        z: latents of the prior faces to start from, ``(N, Z)``, drawn independently of the pictures.
        settings: ``steps``, ``lr``, ``update``, ``task_weight`` and ``beta`` are used.
        start: features to begin with instead of ``Enc(G(z))``.
    """
    if nets.classifier is None or settings.task_weight == 0:
        raise UserError("method answers needs the cloud's classifier on the edge, and task_weight above 0")
    with torch.no_grad():
        answers = nets.classifier(features).sigmoid()
        start = nets.render(z) if start is None else start
    beta = features.new_full((len(features),), settings.beta)
    state = CraftState(start, features, z, beta, answers=answers)
    size = features[0].numel()
    for _ in range(settings.steps):
        loss, pull = task_gradient(nets.classifier, state.features, answers)
        moved = state.features - features
        state.info = {"utility_loss": moved.square().flatten(1).mean(1), "task_loss": loss}
        gradient = settings.task_weight * pull + settings.beta * 2 / size * moved
        state.features = _outer_update(state, gradient, settings)
        state.step += 1
    return state


def craft_z(nets: CraftNets, critic: Net, state: CraftState, settings: CraftSettings) -> CraftState:
    """Crafter-z: moves the latent itself and emits ``Enc(G(z))``: no implicit gradient (appendix).

    It begins where `start_crafting` ends.
    Minimises ``-D(G(z)) + beta * |Enc(G(z)) - Enc(X)|^2 / d`` by Adam at ``settings.lr`` on ``z`` for
    ``settings.steps`` steps.
    """
    features = state.clean
    size = features[0].numel()
    z = state.z.clone()
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for t in range(1, settings.steps + 1):
        with torch.enable_grad():
            variable = z.clone().requires_grad_()
            images = nets.generator(variable)
            utility = (nets.encoder(images) - features).square().flatten(1).sum(1) / size
            loss = -critic(images) + state.beta * utility
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
        first, second = torch.lerp(gradient, first, 0.9), torch.lerp(gradient.square(), second, 0.999)
        z = z - settings.lr / (1 - 0.9**t) * first / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    with torch.no_grad():
        state.z, state.features = z, nets.render(z)
    state.step = settings.steps
    return state
