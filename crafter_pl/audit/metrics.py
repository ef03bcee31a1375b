"""Metrics of privacy and utility, one value a picture wherever the metric allows it.

Pictures are float tensors `(N, 3, H, W)` in `[0, 1]`. Per-picture values are what the bootstrap needs: an
interval over identities cannot be made from a mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from crafter_pl.errors import UserError

PSNR_CAP = 100.0  # dB; two equal pictures would have an infinite PSNR and an infinite mean


class AttributeAUC(NamedTuple):
    """AUC of every attribute that has both classes, and the names of those that were left out."""

    per_attribute: dict[str, float]
    mean: float
    left_out: list[str]


def topk_hits(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Say for each picture whether its person is among the oracle's `k` best guesses (the paper's Eval Acc).

    Args:
        logits: `(N, P)`, one column a person.
        labels: `(N,)` int64 in `[0, P)`.
        k: guesses allowed; more than `P` means all.

    Returns:
        `(N,)` bool.

    Raises:
        ValueError: on logits that are not finite (NaN would be sorted first, and count as a hit).
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the oracle's logits are not finite; its input or its weights are broken")
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def panel_hits(hits: list[Tensor]) -> Tensor:
    """Say for each picture whether any of the verdicts is a hit: `(N,)` bool tensors in, one `(N,)` bool out.

    Over oracles this is "any oracle of the panel names the person"; over attacks and oracles it is the worst
    case.

    Raises:
        ValueError: on an empty list.
    """
    if not hits:
        raise ValueError("panel_hits needs at least one verdict")
    return torch.stack(hits).any(dim=0)


def worst_case_chance(named: Tensor, labels: Tensor, people: int) -> Tensor:
    """Worst-case rate if every reconstruction had been made from *another* person's picture, by picture.

    Several attacks and oracles have several guesses at each picture, so the worst case has a higher chance
    level than `1 / people`. The mean over the pictures is the mean, over all permutations that give each
    picture another person's label, of the rate at which any guess names that label. Each other label is
    equally often a picture's, so it is exact and needs no sampling: picture `i` has
    `|guesses_i without label_i| / (people - 1)`, where equal guesses count once.

    Args:
        named: `(V, N)` int64, the person that each of `V` attack-oracle pairs names; all in the same label
            space.
        labels: `(N,)` int64, the true person.
        people: how many labels there are.

    Returns:
        `(N,)` float64 in [0, 1].

    Raises:
        ValueError: with fewer than two people.
    """
    if people < 2:
        raise ValueError(f"a permutation needs at least 2 people, got {people}")
    guessed = torch.zeros(labels.shape[0], people, dtype=torch.bool)
    guessed.scatter_(1, named.T.contiguous(), True)
    guessed.scatter_(1, labels[:, None], False)
    return guessed.sum(dim=1).double() / (people - 1)


def identity_similarity(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Cosine of an oracle's embeddings of reconstruction and original: high where it sees the same person.

    The paper calls this "FSIM". It is *not* the image-quality index FSIM (feature similarity by phase
    congruency); the name says what it is here.

    Args:
        reconstruction: embeddings `(N, E)`.
        original: embeddings `(N, E)`.

    Returns:
        `(N,)` in `[-1, 1]`.
    """
    return torch.cosine_similarity(reconstruction, original, dim=1)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity of each picture to its original, `(N,)`, 1 for equal pictures.

    The usual Gaussian window of 11 pixels (sigma 1.5). A picture smaller than that gets the largest odd
    window that fits, its sigma in proportion; torchmetrics sizes the window by sigma alone.

    Raises:
        ValueError: for pictures under 3 pixels.
    """
    side = min(images.shape[-2:])
    if side < 3:
        raise ValueError(f"SSIM needs pictures of 3 pixels or more, got {side}")
    window = min(11, side if side % 2 else side - 1)
    sigma = 1.5 if window == 11 else (window - 1) / 7
    value = structural_similarity_index_measure(
        images, originals, sigma=sigma, data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value.reshape(-1)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, `(N,)`, range of the data 1, capped at 100 dB."""
    value = peak_signal_noise_ratio(images, originals, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return value.clamp(max=PSNR_CAP)


def lpips(images: Tensor, originals: Tensor, batch_size: int = 256) -> Tensor:
    """Learned perceptual distance (LPIPS, AlexNet) of each picture to its original, `(N,)`, 0 if equal.

    Pictures under 64 pixels are enlarged to 64 first (bilinear): AlexNet has no output for smaller ones.

    Raises:
        UserError: if torchvision's AlexNet weights are neither cached nor downloadable.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    values = []
    for a, b in zip(images.split(batch_size), originals.split(batch_size), strict=True):
        if min(a.shape[-2:]) < 64:
            a = torch.nn.functional.interpolate(a, size=(64, 64), mode="bilinear")
            b = torch.nn.functional.interpolate(b, size=(64, 64), mode="bilinear")
        try:
            value = learned_perceptual_image_patch_similarity(
                a, b, net_type="alex", reduction="none", normalize=True
            )
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download a RuntimeError
            raise UserError(
                f"LPIPS needs torchvision's ImageNet weights of AlexNet, which could not be loaded: {error}. "
                f"Put the file in {torch.hub.get_dir()}/checkpoints, or leave --lpips false."
            ) from error
        values.append(value.reshape(-1))
    return torch.cat(values)


def attribute_auc(scores: Tensor, targets: Tensor, names: list[str]) -> AttributeAUC:
    """Area under the ROC curve of each attribute and their mean (utility).

    An attribute with one class only in the evaluated set has no AUC: it is left out of the mean, and named.

    Args:
        scores: `(N, A)` logits.
        targets: `(N, A)` 0 or 1.
        names: `A` attribute names.

    Raises:
        UserError: if no attribute has both classes.
    """
    found, left_out = {}, []
    for column, name in enumerate(names):
        target = targets[:, column].long()
        if 0 < int(target.sum()) < target.numel():
            # torchmetrics puts logits through a sigmoid, where large ones become equal: give it ranks
            distinct, rank = scores[:, column].unique(return_inverse=True)
            found[name] = float(binary_auroc(rank.double() / len(distinct), target))
        else:
            left_out.append(name)
    if not found:
        raise UserError(
            f"None of the attributes {', '.join(names)} has both classes in the evaluated pictures, so there "
            "is no mean AUC. Evaluate more pictures, or choose other columns with --data.attribute_columns."
        )
    return AttributeAUC(found, sum(found.values()) / len(found), left_out)
