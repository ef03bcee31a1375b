"""TIPRDC: the estimate of information, the adversary, and who learns from what."""

import math

import pytest
import torch

from crafter_pl.defenses.baselines.tiprdc import Tiprdc
from crafter_pl.errors import UserError
from crafter_pl.nets import MutualInformation


def test_the_estimate_tells_dependence_from_independence():
    """Of features that show the picture it learns more than of noise, which stays at -2 ln 2."""
    found = []
    for dependent in (True, False):
        torch.manual_seed(0)
        critic = MutualInformation(3, 2, width=8)
        optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
        values = []
        for _ in range(200):
            images = torch.randint(2, (32, 1, 1, 1)).float().expand(-1, 3, 16, 16)
            features = images[:, :, ::2, ::2] if dependent else torch.rand(32, 3, 8, 8)
            loss = -critic(features, images, torch.zeros(32, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(-loss.item())
        found.append(sum(values[-20:]) / 20)
    assert found[0] > -1.0 and found[1] < -1.3
    assert max(found) <= 0 and found[1] == pytest.approx(-2 * math.log(2), abs=0.06)


def test_features_that_tell_the_label_alone_are_worth_nothing():
    """A picture is its person's colour and a second one; who knows the person knows the first already."""
    found = {}
    for kind in ("nothing", "person", "second"):
        torch.manual_seed(0)
        critic = MutualInformation(3, 2, width=8)
        optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
        values = []
        for _ in range(300):
            person, second = torch.randint(2, (2, 64))
            images = torch.zeros(64, 3, 16, 16)
            images[:, 0], images[:, 1] = person[:, None, None].float(), second[:, None, None].float()
            told = {"nothing": torch.ones(64), "person": person.float(), "second": second.float()}[kind]
            loss = -critic(told[:, None, None, None].expand(-1, 3, 8, 8), images, person)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(-loss.item())
        found[kind] = sum(values[-50:]) / 50
    assert found["person"] == pytest.approx(found["nothing"], abs=0.05)
    assert found["nothing"] > -1.3 and found["second"] > found["nothing"] + 0.15


@pytest.fixture
def people(tiny):
    return sorted(set(tiny.data().rows("private_test")["identity"].tolist()))


def test_the_adversary_learns_who_it_is(game, people):
    stage, logged = game(Tiprdc, steps=30, people=people, lr=0.0, adversary_lr=3e-3, width=8)
    assert stage.backwards[::2][-1] < 0.5 * stage.backwards[0]  # the adversary's turns
    assert logged[-1]["train/hidden"] <= logged[0]["train/hidden"]


def test_the_encoder_hides_who_it_is(game, people):
    settings = {"people": people, "adversary_lr": 0.0, "lr": 1e-3, "width": 8}
    hiding = game(Tiprdc, steps=15, lambda_=1.0, **settings)[1]
    telling = game(Tiprdc, steps=15, lambda_=0.0, **settings)[1]
    assert hiding[-1]["train/hidden"] >= max(hiding[0]["train/hidden"], telling[-1]["train/hidden"])
    assert telling[-1]["train/information"] > telling[0]["train/information"]


def test_the_task_teaches_the_classifier_alone(game, people, tiny):
    stage = game(Tiprdc, steps=0, people=people, width=8)[0]
    batch = tiny.data().rows("private_test")
    features = stage.features(batch["image"])
    stage.net.cloud(stage.to_cloud(features)).sum().backward()
    assert all(p.grad is None for p in stage.net.edge.parameters())
    assert any(p.grad is not None for p in stage.net.cloud.parameters())


@pytest.mark.parametrize("bad", [{"lambda_": 1.1}, {"adversary_steps": 0}, {"width": 0}])
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=f"{next(iter(bad))} {next(iter(bad.values()))} "):
        Tiprdc(tiny.ckpt("task"), **bad)
