"""The adaptive white-box attacker of the tests."""

import pytest

from crafter_pl.attacks.adaptive_white_box import AdaptiveWhiteBox

PAPER = ["--model.init_args.amortize", "false", "--model.init_args.attack_steps", "3"]

PAPER += ["--model.init_args.inversion_lr", "0.05"]


@pytest.fixture
def stage(tiny):
    """A stage outside a trainer, whose hidden lines are quiet; in float64: tiny nets amplify rounding."""

    def make(**settings):
        made = AdaptiveWhiteBox(
            tiny.ckpt("crafter"), **tiny.upstream("prior", "amortizer"), **settings
        ).double()
        made.log = lambda *_, **__: None
        made.all_gather = lambda x: x
        return made

    return make
