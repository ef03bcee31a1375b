"""Fawkes: a cloak that makes a face recogniser take the face for somebody else's."""

import torch
from torch import Tensor, nn

from crafter_pl.defenses.baselines.cloak import Cloak, dssim
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.limits import AboveZero, PositiveInt
from crafter_pl.stages import Embedder, Upstream


class Fawkes(Cloak[KeyedOptions]):
    """Moves a picture's embedding towards a public person who is far from it.

    Shan et al., Fawkes: Protecting Privacy against Unauthorized Deep Learning Models, USENIX Security 2020.
    For a picture x it minimises ``|Phi(x') - c|^2 + penalty * max(DSSIM(x, x') - rho, 0)`` by Adam, where c
    is the centroid of the embeddings of the farthest among ``candidates`` public people, drawn once, by the
    seed. Of all x' on the way it takes the nearest to c within the budget: no DSSIM is above ``rho``.

    Not the authors': they keep x' a picture by a change of variables, here it is clipped to [0, 1] after each
    step; their target is one for all pictures of a person, here each picture has its own.

    `fit` measures the centroids in one epoch; nothing else is learned.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        embedder_ckpt: the recogniser of public people, Phi; null finds the experiment's own.
        rho: DSSIM that a cloak may have (the authors': 0.004, 0.012 and 0.017 for low, mid and high).
        penalty: weight of what is above it.
        steps: of Adam.
        lr: Adam's learning rate, in pixel values.
        candidates: public people among whom the target is chosen; all if there are fewer.
        seed: of their choice.
    """

    embedder = Upstream(Embedder)  # the frozen recogniser
    stage_name = "fawkes"
    options_class = KeyedOptions
    tradeoff = "rho"
    recorded = ("rho", "penalty", "steps", "lr", "candidates")

    def __init__(
        self,
        task_ckpt: str | None = None,
        embedder_ckpt: str | None = None,
        rho: AboveZero = 0.012,
        penalty: AboveZero = 200.0,
        steps: PositiveInt = 60,
        lr: AboveZero = 0.01,
        candidates: PositiveInt = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        people, size = self.embedder.net.centres.shape
        self.total = nn.Buffer(torch.zeros(people, size))
        self.count: Tensor = nn.Buffer(torch.zeros(people))

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Takes a batch into the sums of embeddings of each person."""
        person = self.embedder.classes(batch["identity"])
        self.total.index_add_(0, person, self.embedder.embed(batch["image"]).float())
        self.count += torch.bincount(person, minlength=len(self.count))
        self.log("train/people", (self.count > 0).sum().float())

    def targets(self, embeddings: Tensor, seed: int) -> Tensor:
        """The centroid ``(N, E)`` of the farthest for each embedding ``(N, E)``; ``seed`` draws them."""
        known = self.count.nonzero().flatten()
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        chosen = known[order[: self.hparams["candidates"]].to(known.device)]
        centroids = (self.total[chosen] / self.count[chosen, None]).to(embeddings)
        return centroids[(embeddings[:, None] - centroids).square().sum(2).argmax(1)]

    @torch.enable_grad()
    def search(self, image: Tensor, options: KeyedOptions) -> Tensor:
        """One picture ``(1, 3, H, W)`` in [0, 1] -> its cloak, of a DSSIM of at most ``rho``."""
        h, (net,) = self.hparams, self.embedders()
        target = self.targets(net.embed(image), options.seed)
        picture = image.clone().requires_grad_()
        optimizer = torch.optim.Adam([picture], lr=h["lr"])
        best, least = image, torch.inf
        for step in range(h["steps"] + 1):
            distance = (net.embed(picture) - target).square().sum()
            seen = dssim(picture, image)[0]
            if seen <= h["rho"] and distance < least:
                best, least = picture.detach().clone(), distance.item()
            if step < h["steps"]:
                optimizer.zero_grad()
                (distance + h["penalty"] * (seen - h["rho"]).relu()).backward()
                optimizer.step()
                with torch.no_grad():
                    picture.clamp_(0, 1)
        return best
