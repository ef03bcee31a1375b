"""Long work on messages that is interrupted, and goes on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from crafter_pl.answers import ATTRIBUTES
from crafter_pl.crafting.message import make_pool, train_pass
from crafter_pl.crafting.parts import Parts

WORDS = torch.tensor([[0.1, 0.9], [0.8, 0.2]]).double()


class Interrupted:
    """Crafts so many batches, then is interrupted."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, codewords, z):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return (codewords.sum(1) + z.sum(1).double()).view(-1, 1, 1, 1), z[:, 0]


def test_a_pool_goes_on_where_it_stopped(tmp_path):
    whole, off = make_pool(Interrupted(3), WORDS, 80, 4)  # 160 features, 64 at a time
    parts = Parts(tmp_path / "parts", WORDS, ["settings"])
    with pytest.raises(KeyboardInterrupt):
        make_pool(Interrupted(2), WORDS, 80, 4, parts)
    again, same = make_pool(Interrupted(1), WORDS, 80, 4, Parts(tmp_path / "parts", WORDS, ["settings"]))
    assert torch.equal(whole, again) and off == same
    for start, settings in ((WORDS, ["others"]), (WORDS / 2, ["settings"])):
        with pytest.raises(KeyboardInterrupt):
            make_pool(Interrupted(0), WORDS, 80, 4, Parts(tmp_path / "parts", start, settings))
    parts.clear()
    assert not list(tmp_path.iterdir())


class Pass(nn.Module):
    def __init__(self, fails_at=-1):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.fails_at = nn.Linear(5, 3), fails_at

    def forward(self, start, words):
        if self.training:
            self.fails_at -= 1
            if self.fails_at == 0:
                raise KeyboardInterrupt
        return self.layer(torch.cat([start, words], 1))


def test_the_net_of_one_pass_goes_on_where_it_stopped(tmp_path):
    torch.manual_seed(0)
    nets = SimpleNamespace(
        render=nn.Linear(4, 3).requires_grad_(False),
        classifier=nn.Linear(3, 2).requires_grad_(False),
        answers=ATTRIBUTES,
    )
    args = WORDS, torch.tensor([0, 1]), 4, 230, 10.0
    whole, parts, stopped, again = Pass(), Parts(tmp_path, WORDS), Pass(150), Pass(150)
    off = train_pass(nets, whole, *args)
    with pytest.raises(KeyboardInterrupt):
        train_pass(nets, stopped, *args, parts)
    assert train_pass(nets, again, *args, parts) == pytest.approx(off, rel=1e-5)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)
