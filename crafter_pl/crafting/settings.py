"""What crafting is told, and where it stands: settings of Algorithm 1, the frozen nets, a batch's state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crafter_pl.answers import Answers, MultiLabel
from crafter_pl.crafting.inversion import InversionState, Recorded
from crafter_pl.errors import UserError
from crafter_pl.limits import AboveZero, FromZero, NonNegativeInt, PositiveInt, checked

Precision = Literal["bf16", "float32", "float64"]

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class CraftSettings:
    """Settings of Algorithm 1.

    Attributes:
        beta: weight of the utility term (the paper's; larger keeps more utility and less privacy).
        task_weight: gamma, weight of a second utility term: the divergence of the cloud's answers, of
            attributes the mean of ``KL(f(Enc(X)) | f(F))``; 0 is the paper's. It needs the cloud's
            classifier (or a public surrogate) on the edge.
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

    beta: FromZero = 1.0
    task_weight: FromZero = 0.0
    steps: NonNegativeInt = 80
    lr: AboveZero = 0.02
    update: Literal["rms", "adam"] = "rms"
    start_steps: NonNegativeInt = 40
    inner_steps: NonNegativeInt = 4
    inner_lr: AboveZero = 0.03
    prior_weight: FromZero = 0.0
    solver: Literal["gauss_newton", "cg", "neumann", "unroll"] = "gauss_newton"
    damping: FromZero = 1.0
    iterations: PositiveInt = 4
    alpha: AboveZero = 1e-3
    critic_steps: NonNegativeInt = 3
    critic_batch: int = 32
    critic_lr: AboveZero = 5e-4
    penalty: FromZero = 20.0
    precision: Precision = "float32"
    double_start: bool = True
    polish_steps: NonNegativeInt = 0
    polish_lr: AboveZero = 0.02

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        checked(CraftSettings, vars(self), "--model.init_args.craft")
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
        amortizer: features -> latents, where the inversion starts.
        classifier: features -> the cloud's outputs ``(N, A)``.
        answers: what these mean.
    """

    encoder: nn.Module
    generator: nn.Module
    amortizer: nn.Module
    classifier: nn.Module
    answers: Answers = field(default_factory=MultiLabel)

    def render(self, z: Tensor) -> Tensor:
        """``Enc(G(z))``."""
        return self.encoder(self.generator(z))


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
        parts: dict[str, Any] = {
            n: part.to(dtype) for n, part in vars(self).items() if isinstance(part, Tensor)
        }
        return replace(self, **parts, inner=self.inner and self.inner.to(dtype), drawn=None)
