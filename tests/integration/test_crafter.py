"""The contract of the defence: what leaves the edge, and what it does not depend on."""

import inspect
from dataclasses import replace
from functools import partial

import pytest
import torch
from closeness import near
from crafter_lab import audited, crafter, distance, loaded, variant  # noqa: F401
from torch import nn

from crafter_pl.crafting.craft import craft_answers, start_crafting, task_gradient
from crafter_pl.crafting.reference import reference_craft
from crafter_pl.crafting.settings import CraftNets, CraftSettings
from crafter_pl.defenses import Answers, Crafter, CrafterFast, CrafterReference, CrafterZ
from crafter_pl.defenses import crafter as crafter_module
from crafter_pl.defenses.crafter_variants import FAST
from crafter_pl.errors import UserError


def test_beta_weighs_utility(crafter, audited):
    images, index = audited[0][:8], audited[1][:8]
    clean = crafter().task.edge(images)
    made = [crafter(beta=beta, steps=10).protect(images, index) for beta in (0.01, 1.0, 100.0)]
    moved = torch.stack([distance(features, clean) for features in made])
    assert (moved[0] > 1.05 * moved[1]).all() and (moved[1] > 3 * moved[2]).all()
    assert moved[2].max() < 0.1


def test_crafting_deceives_the_critic(crafter, audited):
    """The point of it: what an inversion of the crafted features shows is nearer to the prior's faces."""
    images, index = audited[0][:8], audited[1][:8]
    stage = crafter(beta=0.0, steps=15)
    state = stage.craft(images, index, stage.options, stage.options.on(stage.craft_settings))
    with torch.no_grad():
        before = stage.critic(
            stage.prior.generator(start_crafting(stage.nets, state.clean, stage.craft_settings).z)
        )
        after = stage.critic(stage.prior.generator(state.z))
    assert (after > before).sum() >= 6 and after.mean() > before.mean()


def test_crafter_z_emits_features_of_prior_faces(crafter, variant, audited):
    images, index = audited[0][:4], audited[1][:4]
    told = variant(CrafterZ, steps=8, beta=0.1)
    settings, stage = told.settings_of(told.options), told.crafter
    state = told.craft(images, index, told.options)
    with torch.no_grad():
        assert near(state.features, stage.nets.render(state.z))

        def loss(z):
            utility = (stage.nets.render(z) - state.clean).square().flatten(1).mean(1)
            return -stage.critic(stage.prior.generator(z)) + 0.1 * utility

        start = start_crafting(stage.nets, state.clean, settings).z
        assert (loss(state.z) < loss(start)).all()
    assert distance(state.features, crafter(steps=8, beta=0.1).protect(images, index)).min() > 0.01


def test_answers_are_all_that_is_left_of_the_picture():
    """Two pictures of the same answers give the same feature; what moves it is the answers and the key."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).double()
    classifier[1].weight.data = weight[:3]
    nets = CraftNets(nn.Identity(), nn.Unflatten(1, (3, 2, 2)), nn.Identity(), classifier)
    settings = CraftSettings(beta=0.0, task_weight=1.0, steps=60, lr=0.1)
    clean = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    hidden = (torch.randn(4, 9, dtype=torch.float64) @ weight[3:]).view_as(clean)  # the cloud does not see it
    faces, others = torch.randn(2, 4, 12, dtype=torch.float64)
    made = craft_answers(nets, clean, faces, settings)
    twin = craft_answers(nets, clean + hidden, faces, settings)
    assert torch.allclose(made.features, twin.features, atol=1e-9)
    assert distance(craft_answers(nets, clean, others, settings).features, made.features).min() > 0.1
    asked, given, started = (classifier(x).sigmoid() for x in (clean, made.features, nets.render(faces)))
    assert (given - asked).abs().mean() < 0.2 * (started - asked).abs().mean()
    # A larger beta brings the picture's own feature back.
    near = [craft_answers(nets, clean, faces, replace(settings, beta=b)).features for b in (0.0, 0.01, 1.0)]
    far = torch.stack([distance(features, clean) for features in near]).mean(1)
    assert far[0] > far[1] > far[2]


def test_answers_hang_on_the_seed_and_not_on_the_batch(variant, audited):
    images, index = audited[0][:4], audited[1][:4]
    stage = variant(Answers, precision="float64")
    made = stage.protect(images, index)
    assert distance(stage.protect(images[2:3], index[2:3]), made[2:3]) < 1e-6
    assert distance(variant(Answers, seed=1).protect(images, index), made).min() > 0.01
    assert stage.settings()["beta"] == 0 and variant(Answers).store_name() == "beta0"


@pytest.mark.parametrize("cls", [Crafter, Answers, CrafterZ])
@pytest.mark.parametrize(
    "bad", [{"method": "answers"}, {"critic": "clever"}, {"beta": "much"}, {"steps": 2.5}]
)
def test_options_that_a_defence_does_not_have(crafter, variant, cls, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        crafter(**bad) if cls is Crafter else variant(cls, **bad)


def test_fast_takes_few_light_steps_and_a_polish(variant, audited):
    images, index = audited[0][:4], audited[1][:4]
    with pytest.raises(UserError, match=r"polish_steps.*task_weight"):
        variant(CrafterFast)
    fast = partial(variant, CrafterFast, {"task_weight": 0.5})
    told = fast().settings()
    assert {key: told[key] for key in FAST} == FAST and fast().store_name() == "beta1"
    stage = fast(precision="float64")  # in float32 its large steps may magnify the rounding
    made = stage.protect(images, index)
    assert distance(stage.protect(images[2:3], index[2:3]), made[2:3]) < 1e-6
    assert fast(steps=3).settings()["steps"] == 3 and fast(steps=3).settings()["polish_steps"] == 40


def test_a_polish_brings_the_answers_back_and_little_else(crafter, audited):
    images, index = audited[0][:4], audited[1][:4]
    stage = crafter()
    few = replace(stage.craft_settings, task_weight=0.5, steps=6, lr=0.3)

    def craft(settings):
        return stage.craft(images, index, stage.options, settings)

    plain, polished = craft(few), craft(replace(few, polish_steps=20))
    clean = stage.task.edge(images)
    cloud = stage.nets.classifier
    off, left = (
        task_gradient(cloud, state.features, cloud(clean).sigmoid())[0] for state in (plain, polished)
    )
    assert (left < 0.5 * off).all()
    moved = distance(polished.features, plain.features)
    assert (0 < moved).all() and (moved < 0.5 * distance(plain.features, clean)).all()
    assert torch.equal(plain.z, polished.z)  # nothing is inverted


def test_reference_has_the_released_constants(variant):
    """Whatever this Crafter was trained with; the manifest says what was run."""
    stage = variant(CrafterReference, beta=2.0)
    said = inspect.signature(reference_craft).parameters
    told = stage.settings()
    for name in (
        "steps",
        "lr",
        "inner_steps",
        "inner_lr",
        "critic_steps",
        "critic_batch",
        "critic_lr",
        "alpha",
    ):
        assert told[name] == said[name].default, name
    assert told["iterations"] == said["terms"].default and told["beta"] == 2.0 and told["task_weight"] == 0
    assert stage.store_name() == "beta2"


@pytest.mark.parametrize("cls", [Crafter, CrafterZ, CrafterFast, Answers, CrafterReference])
def test_no_steps_are_no_protection(crafter, variant, cls):
    with pytest.raises(UserError, match="steps 0"):
        crafter(steps=0) if cls is Crafter else variant(cls, {"task_weight": 0.5}, steps=0)


def test_a_critic_that_adapts_learns_from_batches_of_its_own_size(crafter, audited, monkeypatch):
    sizes, real_step = [], crafter_module.critic_step

    def spy(critic, optimizer, fake, real, mix, penalty):
        sizes.append((len(fake), len(real), len(mix)))
        return real_step(critic, optimizer, fake, real, mix, penalty)

    monkeypatch.setattr(crafter_module, "critic_step", spy)
    stage = crafter(critic="per_batch")
    stage.craft(*audited, stage.options, replace(stage.craft_settings, critic_batch=5, critic_steps=2))
    assert sizes == [(5, 5, 5)] * (2 * stage.options.steps)


def test_reference_runs(variant, audited):
    images, index = audited[0][:3], audited[1][:3]
    stage = variant(CrafterReference, steps=1)
    made = stage.protect(images, index)
    assert made.isfinite().all() and distance(made, stage.task.edge(images)).min() > 0
    assert torch.equal(made, stage.protect(images, index))


def test_divergence_of_the_answers_by_hand():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    clean, moved = torch.randn(2, 4, 3, 1, 4, dtype=torch.float64)
    answers = classifier(clean).sigmoid().detach()
    loss, gradient = task_gradient(classifier, moved, answers)
    bernoulli = torch.distributions.Bernoulli
    p, q = bernoulli(probs=answers), bernoulli(logits=classifier(moved))
    expected = torch.distributions.kl_divergence(p, q).mean(1)
    assert torch.allclose(loss, expected, rtol=1e-9)
    step = torch.zeros_like(moved)
    step[:, 1, 0, 2] = 1e-6
    high, low = (task_gradient(classifier, moved + sign * step, answers)[0] for sign in (1, -1))
    assert torch.allclose(gradient[:, 1, 0, 2], (high - low) / 2e-6, rtol=1e-5)
    loss, gradient = task_gradient(classifier, clean, answers)
    assert loss.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_task_weight_keeps_the_clouds_answers(crafter, audited):
    images, index = audited[0][:8], audited[1][:8]
    stage = crafter()
    settings = replace(stage.craft_settings, beta=0.0, steps=10)
    with torch.no_grad():
        answers = stage.task.cloud(stage.task.edge(images)).sigmoid()
        far = []
        for weight in (0.0, 100.0):
            made = stage.craft(images, index, stage.options, replace(settings, task_weight=weight)).features
            far.append((stage.task.cloud(made).sigmoid() - answers).abs().mean())
    assert far[1] < 0.5 * far[0]
