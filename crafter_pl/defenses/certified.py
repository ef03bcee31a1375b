"""Certified crafting: what leaves knows the picture through a message of a few bits, with a proof."""

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crafter_pl.certificate import Certificate
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import Codebook, Quantiser, check_size, learn_messages
from crafter_pl.crafting.message import craft_message, make_pool, train_pass
from crafter_pl.crafting.noise import keyed_bits, keyed_normal, uniform
from crafter_pl.crafting.parts import Parts
from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.data.pool import Pool
from crafter_pl.data.transport import received
from crafter_pl.defenses.distilled import Distilled
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.device import one_thread
from crafter_pl.errors import UserError
from crafter_pl.limits import AboveZero, BelowOne, NonNegativeInt, PositiveInt
from crafter_pl.nets import CraftingNet
from crafter_pl.nets.certified import MessagePass, PoolPass

Way = Literal["pool", "optimisation", "pass"]
_COINS, _ROWS = 1, 2  # streams of keyed noise
_LEARNT = ("codewords", "weights", "shares", "edges", "pool")  # in the last epoch


@dataclass(frozen=True, kw_only=True)
class CertifiedOptions(KeyedOptions):
    """Of certified crafting.

    Args:
        epsilon: of randomised response over the messages; none: the message is kept.
        way: a feature of the pool, one that is optimised for this message, or one by a net in one pass.
        draws: coins and rows from the system's entropy, or keyed by (seed, picture) as in experiments.
    """

    epsilon: AboveZero | None = None
    way: Way = "pool"
    draws: Literal["keyed", "system"] = "keyed"


class Certified(Distilled[CertifiedOptions]):
    """Sends a feature that was made from a message of a few bits, and not from the picture.

    On the edge a small head answers for the attributes that the service ``needs``; a `Channel` makes one of
    ``2 ** bits`` messages of these answers; what leaves is a feature from a pool, for which the unchanged
    cloud answers as the message says. Beyond the paper. The proof: `Channel.factor`, `Certificate`.

    `fit` distils the head on public faces. In its last epoch it learns the codebook from the head's answers
    for these, and crafts the pool (`craft_message`).

    Args:
        task_ckpt: the task model (encoder and classifier); null finds the experiment's own.
        prior_ckpt: the prior; null finds the experiment's own.
        needs: the attributes or values that the service needs, by name; ``all`` of them must be asked for;
            of classes and embeddings there are no others.
        bits: a codebook has ``2 ** bits`` words at most.
        levels: instead of a codebook so many levels of each attribute or value.
        floor: words that a smaller share of the public faces have are merged into others: a rare message
            names its owner.
        epsilon: of randomised response; null: none.
        work: what runs on the edge, in multiply-adds, as a multiple of the encoder's; it sets the width of
            the head. Null: the head is the cloud's whole classifier.
        head_of: checkpoint of another one for the same needs and work, whose head is taken; null: the
            head is learnt.
        pool: features in the pool, over all messages; at least one for each.
        steps: of the optimisation that makes one.
        step_size: its step size, see `CraftSettings.lr`.
        need_weight: weight of a needed attribute in it; others have 1.
        way: of `predict`; with ``pass`` the net is trained that makes a feature in one pass.
        pass_steps: batches of 32 messages and prior faces that it learns from.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        seed: of coins and rows in `predict`.

    Attributes:
        codewords: what each message says of the needed attributes, statistics ``(M, S)``: probabilities,
            standardised values or unit vectors, see `crafter_pl.answers`.
        weights: of the needed attributes in the choice of a codeword ``(S,)``, see `Answers.weights`.
        shares: of public faces that have each message, ``(M,)``.
        edges: where the levels are parted, ``(S, L - 1)``; empty with a codebook.
        pool: the features ``(M, R, C, h, w)``. The same on all devices, and no secret.
    """

    stage_name = "certified"
    options_class = CertifiedOptions
    recorded = ("needs", "bits", "levels", "floor", "work", "steps", "step_size", "need_weight")
    codewords: Tensor
    weights: Tensor
    shares: Tensor
    edges: Tensor
    pool: Tensor

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        needs: list[str] | Literal["all"] | None = None,
        bits: PositiveInt = 5,
        levels: PositiveInt | None = None,
        floor: BelowOne = 0.002,
        epsilon: AboveZero | None = None,
        work: AboveZero | None = 1.5,
        head_of: str | None = None,
        pool: PositiveInt = 256,
        steps: PositiveInt = 60,
        step_size: AboveZero = 0.1,
        need_weight: AboveZero = 10.0,
        way: Way = "pool",
        pass_steps: NonNegativeInt = 2000,
        lr: AboveZero = 2e-3,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.begin(needs, work)
        check_size(bits, levels, len(self.columns), self.task.answers)
        shape = self.task.feature_shape
        self.net = CraftingNet(shape, len(self.columns), 40).requires_grad_(False) if way == "pass" else None
        # Their sizes are known when they have been learnt.
        self.codewords = nn.Buffer(torch.empty(0, len(self.columns)).double())
        self.shares = nn.Buffer(torch.empty(0))
        self.weights = nn.Buffer(torch.ones(len(self.columns)).double())
        self.edges, self.pool = nn.Buffer(torch.empty(0).double()), nn.Buffer(torch.empty(0, 0, *shape))
        self.final_metrics: dict[str, float] = {}
        self._answering: dict[torch.device, nn.Module] = {}

    def on_train_epoch_end(self) -> None:
        """After the last epoch: the codebook and the pool, by the first process for all."""
        if self.trainer.current_epoch + 1 < (self.trainer.max_epochs or 0):
            return
        made = self._learnt() if self.trainer.is_global_zero else None
        weights = None if self.net is None else {k: v.cpu() for k, v in self.net.state_dict().items()}
        made, weights = self.trainer.strategy.broadcast((made, weights))
        assert made is not None
        if self.net is not None and weights is not None:
            self.net.load_state_dict(weights)
        self._answering = {}
        for name, value in made.items():
            setattr(self, name, nn.Buffer(value.to(self.device)))
        self.final_metrics["bits"] = (certificate := self.certificate(self.options())).bits
        if self.trainer.is_global_zero:
            sizes = f"{len(self.codewords)} messages with {self.pool.shape[1]} features each"
            print(f"{sizes}: {certificate.bits:.2f} bits a picture, about {self.about}", flush=True)
            if certificate.naming(people := len(self.data.private_identities)) >= 1:
                print(f"note: that proves nothing of {people} private people: give fewer bits", flush=True)

    @torch.no_grad()
    def _learnt(self) -> dict[str, Tensor]:
        """The buffers, from public faces; trains the net of the one pass, if there is one."""
        self.eval()
        answers, h = self.public_answers(), self.hparams
        known = self.meaning.statistic(answers.double())
        messages = learn_messages(known, h["bits"], h["levels"], h["floor"], self.meaning)
        words = messages.codewords
        counts = torch.bincount(messages(answers), minlength=len(words))
        # An interrupted last epoch comes to the same words when it is run again.
        parts = Parts(self.run_dir and self.run_dir / "parts", words, [dict(h), self.upstream_files])
        if self.net is not None:
            off = train_pass(
                *(self.frozen(self.device), self.net, words.to(self.device), self._needed),
                *(self.prior.latent_dim, h["pass_steps"], h["need_weight"], parts),
            )
            self.final_metrics["pass_divergence"] = off
        pool = self.pool.cpu()
        if h["way"] == "pool":
            rows = max(1, h["pool"] // len(words))
            pool, off = make_pool(self._crafted, words, rows, self.prior.latent_dim, parts)
            self.final_metrics["pool_divergence"] = off
        parts.clear()
        made = {"codewords": words, "shares": counts / counts.sum(), "pool": pool}
        return {name: made.get(name, getattr(messages, name, getattr(self, name).cpu())) for name in _LEARNT}

    @property
    def _needed(self) -> Tensor:
        return torch.tensor(self.columns, device=self.device)

    def _crafted(self, codewords: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hparams
        settings = CraftSettings(steps=h["steps"], lr=h["step_size"])
        z, codewords = z.to(self.device), codewords.to(self.device)
        return craft_message(self.frozen(self.device), z, codewords, self._needed, settings, h["need_weight"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes room for what was learnt."""
        super().on_load_checkpoint(checkpoint)
        for name in _LEARNT:
            setattr(self, name, nn.Buffer(torch.empty_like(checkpoint["state_dict"][name])))

    def channel(self, options: CertifiedOptions) -> Channel:
        """From answers to messages.

        Raises:
            UserError: the training has not come to its end, or did not make what the ``way`` needs.
        """
        there = {"optimisation": True, "pool": self.pool.numel() > 0, "pass": self.net is not None}
        if len(self.codewords) and not there[options.way]:
            raise UserError(
                f"this certified defence was trained with way {self.hparams['way']}: it has no "
                f"{'pool' if options.way == 'pool' else 'net for one pass'} (--protect.way)"
            )
        if not len(self.codewords):
            way = "its training has not come to its end; go on with fit --ckpt_path last"
            raise UserError(f"this certified defence has no codebook: {way}")
        messages: Codebook | Quantiser = Codebook(self.codewords, self.weights, self.meaning)
        if len(self.edges):
            messages = Quantiser(self.edges, self.codewords, self.meaning)
        return Channel(messages, options.epsilon).to(self.device)

    def certificate(self, options: CertifiedOptions) -> Certificate:
        """What the channel lets through."""
        return Certificate(self.channel(options).bits, options.epsilon)

    def draw(self, index: Tensor, options: CertifiedOptions) -> tuple[Tensor, Tensor]:
        """Coins for the channel and, from separate draws, z: uniform in [0, 1), float64 ``(N,)`` each."""
        if options.draws == "system":
            both = [[secrets.randbits(53) * 2.0**-53 for _ in range(len(index))] for _ in range(2)]
            coins, z = torch.tensor(both, dtype=torch.float64)
            return coins, z
        streams = (_COINS, _ROWS)
        coins, z = (uniform(keyed_bits(options.seed, index.cpu(), 1, stream))[:, 0] for stream in streams)
        return coins, z

    @torch.no_grad()
    def messages(self, images: Tensor, coins: Tensor, options: CertifiedOptions) -> Tensor:
        """Messages int64 ``(N,)`` of pictures, one at a time: nothing of a neighbour's rounding gets in."""
        if self.device not in self._answering:
            self._answering = {self.device: self.answering()}
        answer, channel = self._answering[self.device], self.channel(options)
        pairs = zip(images.float().split(1), coins.to(self.device).split(1), strict=True)
        with one_thread():
            return torch.cat([channel(answer(image), coin) for image, coin in pairs])

    def sent(self, messages: Tensor, z: Tensor, options: CertifiedOptions) -> Tensor:
        """What leaves: features ``(N, C, h, w)``, which depend on the messages and on ``z`` alone."""
        if options.way == "pool":
            rows = (z * self.pool.shape[1]).long().to(messages.device)
            return self.pool[messages, rows]
        latents = keyed_normal(1, (z * 2.0**53).long().cpu(), self.prior.latent_dim)
        pairs = zip(self.codewords[messages].split(1), latents.split(1), strict=True)
        if options.way == "optimisation":
            return torch.cat([self._crafted(word, one)[0] for word, one in pairs])
        assert self.net is not None
        render = self.frozen(self.device).render
        with torch.no_grad():
            return torch.cat([self.net(render(one.to(self.device)), word.float()) for word, one in pairs])

    def read(self, features: Tensor, options: CertifiedOptions) -> Tensor:
        """Messages int64 ``(N,)`` of the pool's features ``(N, C, h, w)``, as they were received.

        Raises:
            UserError: a feature is not in the pool.
        """
        pool = received(self.pool.flatten(0, 1), options.transport).view(self.pool.shape)
        return Pool(pool).places(features) // self.pool.shape[1]

    def protect(self, images: Tensor, index: Tensor, options: CertifiedOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        coins, z = self.draw(index, options)
        return self.sent(self.messages(images, coins, options), z, options).float()

    def manifest(self, split_hash: str, split: str, options: CertifiedOptions) -> dict[str, Any]:
        """With the bits of the channel and the number of its messages."""
        known = {"bits": self.certificate(options).bits, "messages": len(self.codewords)}
        return {**super().manifest(split_hash, split, options), **known}

    def store_name(self, options: CertifiedOptions) -> str:
        """``bits5`` or ``levels3``, and the options that are not as trained."""
        kind = "bits" if self.hparams["levels"] is None else "levels"
        return super().store_name(options).replace(self.stage_name, f"{kind}{self.hparams[kind]}", 1)

    def edge_graph(self, options: CertifiedOptions) -> nn.Module | None:
        """Encoder, head, channel, and pool or net, as it was trained; an optimisation is no graph."""
        if options.way == "optimisation" or options.way != self.hparams["way"]:
            return None
        if (options.epsilon or 0) > 12:
            raise UserError(
                f"epsilon {options.epsilon:g} is too fine for a graph's float32 coins: at most 12"
            )
        answer, channel = self.answering(), self.channel(options)
        if self.net is None:
            return PoolPass(answer, channel, self.pool)
        nets = self.frozen(self.device)
        render = nn.Sequential(nets.generator, nets.encoder)
        return MessagePass(answer, channel, self.codewords, render, self.net)

    @property
    def edge_noise(self) -> int:
        """A normal number for the coin, and one for the pool's row or the prior face's latent."""
        return 2 if self.net is None else 1 + self.prior.latent_dim
