"""Algorithm 1: moves features so that their inversion looks like a random face, and they stay useful.

``F* = argmin_F  -D(G(z*(F))) + beta * |F - Enc(X)|^2 / d`` with the best response ``z*(F)`` followed along by
a few warm-started inversion steps and the hypergradient of `crafter_pl.crafting.implicit`. All sums run
within a sample: with a fixed critic, a feature's result depends on nothing but the feature, the critic and
the settings.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from crafter_pl.answers import ATTRIBUTES, Answers
from crafter_pl.crafting.implicit import hypergradient
from crafter_pl.crafting.inversion import InversionState, Recorded, adam_step, invert, record
from crafter_pl.crafting.settings import CraftNets, CraftSettings, CraftState
from crafter_pl.errors import UserError
from crafter_pl.nets.critic import gradient_penalty

Net = Callable[[Tensor], Tensor]


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


def task_gradient(
    classifier: Net, features: Tensor, statistic: Tensor, answers: Answers = ATTRIBUTES
) -> tuple[Tensor, Tensor]:
    """Divergence of the cloud's answers and its gradient with respect to the features.

    Args:
        classifier: features -> outputs ``(N, A)``.
        features: ``(N, C, h, w)``.
        statistic: what the outputs at the clean features say, ``(N, A)``.
        answers: what outputs mean.

    Returns:
        Of attributes the mean of ``KL(statistic | sigmoid(classifier(features)))``, of other answers their
        own divergence, ``(N,)``; its gradient.
    """
    with torch.enable_grad():
        variable = features.detach().clone().requires_grad_()
        cross = answers.pooled(answers.terms(classifier(variable), statistic))
        (gradient,) = torch.autograd.grad(cross.sum(), variable)
    return cross.detach() - answers.pooled(answers.terms_at(statistic)), gradient


def utility_gradient(features: Tensor, clean: Tensor, beta: float | Tensor) -> tuple[Tensor, Tensor]:
    """``|F - Enc(X)|^2 / d`` of each sample ``(N,)``, and its gradient, weighed by ``beta``."""
    moved = features - clean
    return moved.square().flatten(1).mean(1), beta * 2 / moved[0].numel() * moved


def start_crafting(
    nets: CraftNets, features: Tensor, settings: CraftSettings, beta: Tensor | None = None
) -> CraftState:
    """Inverts clean features ``(N, C, h, w)`` from the amortized start; ``beta`` is ``(N,)``."""
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
    beta = features.new_full((len(features),), settings.beta) if beta is None else beta
    state = CraftState(features.clone(), features, result.z, beta, inner=result.state)
    if settings.task_weight > 0:
        with torch.no_grad():
            state.answers = nets.answers.statistic(nets.classifier(features))
    return state


def outer_update(state: CraftState, gradient: Tensor, settings: CraftSettings) -> None:
    """One momentum step on the features; for ``rms`` the second moment is one scalar per sample."""
    beta1, beta2 = 0.9, 0.999
    square = gradient.square()
    if settings.update == "rms":
        square = square.flatten(1).mean(1).view(-1, *[1] * (gradient.ndim - 1))
    state.step += 1
    state.first = (1 - beta1) * gradient if state.first is None else torch.lerp(gradient, state.first, beta1)
    state.second = (1 - beta2) * square if state.second is None else torch.lerp(square, state.second, beta2)
    scale = (state.second / (1 - beta2**state.step)).sqrt() + 1e-8
    state.features = state.features - settings.lr / (1 - beta1**state.step) * state.first / scale


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
    beta = state.beta.view(-1, *[1] * (state.features.ndim - 1))
    utility_loss, kept = utility_gradient(state.features, state.clean, beta)
    gradient = hyper.grad + kept
    state.info = {
        "privacy_loss": privacy_loss,
        "utility_loss": utility_loss,
        "hypergradient_norm": hyper.grad.flatten(1).norm(dim=1),
        "residual": hyper.residual,
        "inner_loss": hyper.loss,
        "products": torch.tensor(float(hyper.products)),
    }
    if state.answers is not None:
        state.info["task_loss"], pull = task_gradient(
            nets.classifier, state.features, state.answers, nets.answers
        )
        gradient = gradient + settings.task_weight * pull
    return gradient


def craft_step(nets: CraftNets, critic: Net, state: CraftState, settings: CraftSettings) -> CraftState:
    """One outer step of Algorithm 1: follow the best response, take the hypergradient, move the features."""
    outer_update(state, craft_gradient(nets, critic, state, settings), settings)
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
    if settings.polish_steps:
        # To where the cloud answers as for the clean ones. Of the feature's many entries the answers hang on
        # few directions, so what hides the face is left nearly as it is.
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
        nets: frozen nets.
        features: ``Enc(X)``, ``(N, C, h, w)``.
        z: latents of the prior faces to start from, ``(N, Z)``, drawn independently of the pictures.
        settings: ``steps``, ``lr``, ``update``, ``task_weight`` and ``beta`` are used.
        start: features to begin with instead of ``Enc(G(z))``.
    """
    if settings.task_weight == 0:
        raise UserError("method answers needs the cloud's classifier on the edge, and task_weight above 0")
    with torch.no_grad():
        answers = nets.answers.statistic(nets.classifier(features))
        start = nets.render(z) if start is None else start
    beta = features.new_full((len(features),), settings.beta)
    state = CraftState(start, features, z, beta, answers=answers)
    for _ in range(settings.steps):
        loss, pull = task_gradient(nets.classifier, state.features, answers, nets.answers)
        utility_loss, kept = utility_gradient(state.features, features, settings.beta)
        state.info = {"utility_loss": utility_loss, "task_loss": loss}
        outer_update(state, settings.task_weight * pull + kept, settings)
    return state


def craft_z(nets: CraftNets, critic: Net, state: CraftState, settings: CraftSettings) -> CraftState:
    """Crafter-z: moves the latent itself and emits ``Enc(G(z))``: no implicit gradient (appendix).

    It begins where `start_crafting` ends.
    Minimises ``-D(G(z)) + beta * |Enc(G(z)) - Enc(X)|^2 / d`` by Adam at ``settings.lr`` on ``z`` for
    ``settings.steps`` steps.
    """
    moments = InversionState.fresh(state.z)
    for _ in range(settings.steps):
        drawn = record(nets.generator, state.z)
        with torch.enable_grad():
            moved = nets.encoder(drawn.rendered) - state.clean
            utility = moved.square().flatten(1).sum(1) / moved[0].numel()
            loss = -critic(drawn.rendered) + state.beta * utility
            (gradient,) = torch.autograd.grad(loss.sum(), drawn.z)
        state.z, moments = adam_step(state.z, gradient, moments, settings.lr)
    with torch.no_grad():
        state.features = nets.render(state.z)
    return state
