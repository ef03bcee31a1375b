"""The figures of an attack in the report, one `Column` each: a new one is a line in `COLUMNS`.

It stands in report.json and table.csv under its key, and under its heading in the page's table of attacks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from crafter_pl.audit.panel import Judgement, Panel
from crafter_pl.judges import Judge
from crafter_pl.metrics import Bootstrapped, IdentityBootstrap, accepted, lpips, psnr, ssim


@dataclass(frozen=True)
class Seen:
    """What a column is computed from: one attack's reconstructions of one set of features.

    Attributes:
        images: reconstructions ``(N, 3, H, W)`` in [0, 1], in the order of the originals.
        originals: ``(N, 3, H, W)``.
        judgement: what each judge says of the reconstructions.
        panel: the judges, with their embeddings of the originals.
        boot: resamples of people.
        lpips: whether that is asked for, too.
    """

    images: Tensor
    originals: Tensor
    judgement: Judgement
    panel: Panel
    boot: IdentityBootstrap
    lpips: bool = False


Figures = Bootstrapped | list[Bootstrapped | None] | None


@dataclass(frozen=True)
class Column:
    """A figure.

    Attributes:
        key: in report.json and table.csv.
        of: computes it; a list has one of each judge, of which the first that is not None counts. None: it
            is not measured.
        heading: in the page; empty: it is not shown there.
        digits: behind the point; None: it is a share, shown in per cent, and also by judge in table.csv.
    """

    key: str
    of: Callable[[Seen], Figures]
    heading: str = ""
    digits: int | None = None


def mean(values: Callable[[Seen], Tensor]) -> Callable[[Seen], Figures]:
    """Mean over the pictures of values ``(N,)``, or of each judge's ``(O, N)``."""

    def of(seen: Seen) -> Figures:
        found = values(seen)
        return seen.boot.mean(found) if found.ndim == 1 else [seen.boot.mean(row) for row in found]

    return of


def _pairs(of: Callable[[Seen, Judge, Tensor], Bootstrapped | None]) -> Callable[[Seen], Figures]:
    """Of each judge's similarity ``(N, N)`` of every reconstruction to every original."""

    def figures(seen: Seen) -> Figures:
        every = zip(seen.panel.judges.values(), seen.judgement.embeddings, seen.panel.embeddings, strict=True)
        return [of(seen, judge, judge.similarity(made, originals)) for judge, made, originals in every]

    return figures


def _accepted(seen: Seen, judge: Judge, scores: Tensor, kind: int) -> Bootstrapped | None:
    """By the judge's own threshold: 0, of pairs of one person; 1, of two people."""
    if judge.threshold is None:
        return None
    share = accepted(scores, seen.panel.identity, judge.threshold)[kind]
    return None if np.isnan(share).any() else seen.boot.mean(share)


COLUMNS = (
    Column("eval_acc", mean(lambda seen: seen.judgement.hits)),
    Column("eval_acc_top5", mean(lambda seen: seen.judgement.top5), "top 5"),
    Column("panel_any", mean(lambda seen: seen.judgement.hits.any(dim=0))),
    Column("panel_any_top5", mean(lambda seen: seen.judgement.top5.any(dim=0)), "any, top 5"),
    Column("identity_similarity", mean(lambda seen: seen.judgement.similarity), "identity similarity", 3),
    Column("ssim", mean(lambda seen: ssim(seen.images, seen.originals)), "SSIM", 3),
    Column("psnr", mean(lambda seen: psnr(seen.images, seen.originals)), "PSNR dB", 1),
    Column("tar", _pairs(lambda seen, judge, scores: seen.boot.tar(scores)), "TAR at FAR 1 %"),
    Column("tar_0.1", _pairs(lambda seen, judge, scores: seen.boot.tar(scores, 0.001)), "at FAR 0.1 %"),
    Column("accepted", _pairs(partial(_accepted, kind=0)), "taken for the person"),
    Column("accepted_false", _pairs(partial(_accepted, kind=1)), "for another"),
    Column(
        "lpips",
        lambda seen: seen.boot.mean(lpips(seen.images, seen.originals)) if seen.lpips else None,
        "LPIPS",
        3,
    ),
)
