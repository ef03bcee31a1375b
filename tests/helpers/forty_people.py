"""Forty people of two pictures each, and what an oracle that names some of them says."""

import torch
from torch import Tensor

from crafter_pl.audit.panel import Judgement

PEOPLE, PICTURES = 40, 2
TRUTH = torch.arange(PEOPLE).repeat_interleave(PICTURES)


def judgement(named: Tensor) -> Judgement:
    """One oracle's verdict that names these people."""
    hits = (named == TRUTH)[None]
    return Judgement(hits, hits, named[None], torch.zeros(1, len(TRUTH)), [])
