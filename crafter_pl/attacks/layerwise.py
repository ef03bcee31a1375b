"""Layer-wise inversion: the latent first, then the generator's own features, one layer after another."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from crafter_pl.attacks.descent import descend, project_l1
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.errors import UserError
from crafter_pl.nets import fold_batchnorm
from crafter_pl.stages.prior import GanPrior

State = tuple[Tensor, ...]


class LayerwiseAttack(WhiteBoxAttack):
    """White-box inversion that goes on inside the generator, beyond the pictures that it can draw.

    After the latent (as `WhiteBoxAttack`) the output of the generator's first block is optimised, then that
    of the second, and so on, each starting at what the layer before it has found. A layer's deviation from
    its start stays in an l1 ball (exact projection after every step): small radii keep the prior, large ones
    leave it. As in GIFD (arXiv 2308.04699) and IF-GMI (ECCV 2024); progressive feature optimisation (arXiv
    2508.20613) does so for split inference.

    A layer is what all later blocks read; with a style generator the styles are the first layer, and the
    others are features, the picture so far and the styles, each with its own ball. Sizes are relative: one
    unit of a deviation is the mean absolute value of that tensor in that face, so that radii and step sizes
    mean the same in all layers. Every face is on its own and keeps its iterate of lowest feature loss: no
    layer can make that worse.

    Args:
        task_ckpt: of the latent's search, like all that are not named below: see `WhiteBoxAttack`.
        radii: for each layer, from the first on, how far it may deviate: the ball's radius over the l1 norm
            of the layer itself. Layers beyond the list are left alone.
        layer_steps: Adam steps for each of them.
        layer_lr: their size.
        name: how the report calls it.
    """

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        amortizer_ckpt: str | None = None,
        space: str = "z",
        steps: int = 100,
        lr: float | None = None,
        restarts: int = 1,
        prior_weight: float = 0.0,
        radii: list[float] = [0.2, 0.2, 0.2],  # noqa: B006 (read by jsonargparse, never changed)
        layer_steps: list[int] = [50, 50, 50],  # noqa: B006
        layer_lr: float = 0.02,
        seed: int = 0,
        batch_size: int = 64,
        name: str = "layerwise",
    ) -> None:
        super().__init__(
            task_ckpt=task_ckpt,
            prior_ckpt=prior_ckpt,
            amortizer_ckpt=amortizer_ckpt,
            space=space,
            steps=steps,
            lr=lr,
            restarts=restarts,
            prior_weight=prior_weight,
            seed=seed,
            batch_size=batch_size,
            name=name,
        )
        if len(radii) != len(layer_steps) or min([*radii, *layer_steps], default=0) < 0 or layer_lr <= 0:
            raise UserError(
                f"attack {name}: radii {radii} and layer_steps {layer_steps} must have one entry a layer, "
                f"each at least 0, and layer_lr {layer_lr} must be above 0"
            )
        self.radii, self.layer_steps, self.layer_lr = radii, layer_steps, layer_lr

    def _open(self, prior: GanPrior, device: str) -> None:
        super()._open(prior, device)
        _, draw = prior.generator.latent_space(self.space)
        # Both kinds of generator have blocks, and what draws from w, too.
        self.blocks = [fold_batchnorm(block).to(device) for block in cast(Any, draw).blocks()]
        if len(self.radii) >= len(self.blocks):
            raise UserError(
                f"attack {self.name}: {len(self.radii)} radii, but this generator has "
                f"{len(self.blocks) - 1} layers before its last"
            )

    @torch.no_grad()
    def _draw(self, features: Tensor, latent: Tensor) -> Tensor:
        state: State = (latent,)
        for layer, (radius, steps) in enumerate(zip(self.radii, self.layer_steps, strict=True)):
            state = _run(self.blocks[layer : layer + 1], state)
            state = self._descend(features, state, self.blocks[layer + 1 :], radius, steps)
        (images,) = _run(self.blocks[len(self.radii) :], state)
        return images

    def _descend(
        self, features: Tensor, start: State, later: Sequence[Callable[..., Any]], radius: float, steps: int
    ) -> State:
        """The layer's output after its own optimisation."""
        units = [tensor.flatten(1).abs().mean(1).view(-1, *[1] * (tensor.ndim - 1)) for tensor in start]
        sizes = [tensor[0].numel() for tensor in start]

        def moved(deviation: Tensor) -> State:
            whole = zip(start, units, deviation.split(sizes, dim=1), strict=True)
            return tuple(tensor + unit * part.view_as(tensor) for tensor, unit, part in whole)

        def objective(deviation: Tensor) -> Tensor:
            (images,) = _run(later, moved(deviation))
            return (self.encoder(images) - features).square().flatten(1).sum(1)

        def project(deviation: Tensor) -> Tensor:
            parts = zip(deviation.split(sizes, dim=1), sizes, strict=True)
            return torch.cat([project_l1(part, radius * size) for part, size in parts], 1)

        zero = features.new_zeros(len(features), sum(sizes))
        best, _ = descend(objective, zero, steps=steps, lr=self.layer_lr, project=project)
        return moved(best)

    def settings(self) -> dict[str, Any]:
        """Everything that changes a reconstruction."""
        return {
            **super().settings(),
            "radii": self.radii,
            "layer_steps": self.layer_steps,
            "layer_lr": self.layer_lr,
        }


def _run(blocks: Sequence[Callable[..., Any]], state: State) -> State:
    for block in blocks:
        out = block(*state)
        state = out if isinstance(out, tuple) else (out,)
    return state
