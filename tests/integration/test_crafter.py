"""The contract of the defence: what leaves the edge, and what it does not depend on."""

import copy
import csv
import errno
import inspect
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from closeness import near
from experiment import Told, in_subprocess, shards
from safetensors.torch import load_file
from torch import nn

from crafter_pl.cli import main
from crafter_pl.crafting.craft import (
    craft_answers,
    craft_step,
    privacy_gradient,
    start_crafting,
    task_gradient,
)
from crafter_pl.crafting.implicit import hypergradient
from crafter_pl.crafting.inversion import invert
from crafter_pl.crafting.reference import reference_craft
from crafter_pl.crafting.settings import CraftNets, CraftSettings
from crafter_pl.data.store import read_store
from crafter_pl.defenses import Answers, Crafter, CrafterFast, CrafterReference, CrafterZ
from crafter_pl.defenses import crafter as crafter_module
from crafter_pl.defenses.crafter_variants import FAST
from crafter_pl.errors import UserError
from crafter_pl.nets import AmortizerNet, Bfloat16, Critic, Generator, SplitClassifier, fold_batchnorm
from crafter_pl.stages import load_stage, sha256


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_stage(tiny.ckpt("crafter"), Crafter)


@pytest.fixture
def crafter(loaded):
    """The tiny Crafter with options as `predict --protect.*` gives them."""
    return lambda **options: Told(loaded, **options)


@pytest.fixture
def variant(tiny):
    """`variant(cls, **options)`: another defence by the tiny Crafter; ``craft`` are settings of its own."""

    def configure(cls, craft=None, **options):
        if cls is Answers:
            return Told(
                Answers(
                    tiny.ckpt("task"), tiny.ckpt("prior"), CraftSettings(beta=0.0, task_weight=0.5, steps=3)
                ),
                **options,
            )
        stage = cls(tiny.ckpt("task"), tiny.ckpt("crafter"))
        stage.crafter.craft_settings = replace(stage.crafter.craft_settings, **(craft or {}))
        return Told(stage, **options)

    return configure


@pytest.fixture(scope="module")
def audited(tiny):
    """The 16 pictures of private_test and their indices."""
    rows = tiny.data().rows("private_test")
    return rows["image"], rows["index"]


def distance(a, b):
    """Relative distance of each sample."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


# The store


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_without_instructions_for_it_is_noted_once(fast, tiny, audited, monkeypatch, capsys):
    images, index = audited
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    stage = Crafter(**tiny.upstream("task", "prior", "amortizer"), craft=CraftSettings(steps=1))
    Told(stage).protect(images[:1], index[:1])
    assert "bf16" not in capsys.readouterr().out
    for _ in range(2):
        Told(stage, precision="bf16").protect(images[:1], index[:1])
    note = "note: no instructions for bf16 here: crafting in float32 is much faster\n"
    assert capsys.readouterr().out == ("" if fast else note)


def test_predict_writes_the_store(tiny, tiny_store, crafter, audited):
    images, index = audited
    features, stored, manifest = read_store(
        tiny_store,
        shape=(64, 8, 8),
        encoder_sha256=sha256(tiny.ckpt("task")),
        split_hash=tiny.data().split_hash,
        split="private_test",
    )
    assert torch.equal(stored, index.sort().values) and len(stored) == 16
    assert manifest["defense"] == "crafter" and manifest["seed"] == 0
    settings = manifest["settings"]
    assert settings["beta"] == 1.0 and settings["steps"] == 3 and settings["critic"] == "fixed"
    assert manifest["cost"]["seconds_per_image"] > 0 and manifest["cost"]["peak_memory_mb"] > 10
    # What is in it is what `protect` gives, to the byte, and nothing else is there.
    stage = crafter()
    for number in range(4):
        shard = load_file(tiny_store / f"shard-{number:05d}.safetensors")
        part = slice(4 * number, 4 * number + 4)
        assert shard.keys() == {"features", "index"} and torch.equal(shard["index"], index[part])
        assert torch.equal(shard["features"], stage.protect(images[part], index[part]))
    names = {f"shard-{number:05d}.safetensors" for number in range(4)} | {"manifest.json", "fingerprint"}
    assert {path.name for path in tiny_store.iterdir()} == names
    clean = stage.task.edge(images)
    assert distance(features, clean[index.argsort()]).min() > 0.01  # crafted, not passed on
    text = json.dumps(manifest)
    assert not any(name in text for name in tiny.data().faces.file_names)


def test_predict_again_has_nothing_to_do(tiny, tiny_store, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in tiny_store.iterdir()}
    assert main(tiny.command("predict", "crafter")) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tiny_store.iterdir()} == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["deleted", "truncated", "unfinished", "manifest", "manifest and shard"])
def test_predict_goes_on_where_it_stopped(damage, tiny, tiny_store, tmp_path):
    store, before = shutil.copytree(tiny_store, tmp_path / "store"), shards(tiny_store)
    victim = store / "shard-00002.safetensors"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage != "manifest":
        victim.unlink()
    if damage.startswith("manifest"):  # as the messages about a damaged store advise
        (store / "manifest.json").unlink()
    if damage == "unfinished":  # the last shard and the manifest were never written
        for path in (store / "manifest.json", *sorted(store.glob("shard-*"))[2:]):
            path.unlink(missing_ok=True)
        assert sorted(shards(store)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-0000[01]*")}
    assert main(tiny.command("predict", "crafter", "--protect.out", str(store))) == 0
    assert shards(store) == before
    assert {path.name: path.stat().st_mtime_ns for path in store.glob("shard-0000[01]*")} == kept
    read_store(store)


@pytest.mark.parametrize(
    "option",
    [["--protect.beta", "2"], ["--protect.critic", "per_batch"], ["--protect.seed", "1"], ["--ckpt_path"]],
)
def test_a_store_of_other_settings_is_refused(option, tiny, tiny_store, tmp_path, capsys):
    store = shutil.copytree(tiny_store, tmp_path / "store")
    if option == ["--ckpt_path"]:  # the same settings, but another critic
        content = torch.load(tiny.ckpt("crafter"), weights_only=True)
        content["state_dict"]["critic.layers.0.bias"] += 1
        torch.save(content, tmp_path / "other.ckpt")
        option = ["--ckpt_path", str(tmp_path / "other.ckpt")]
    assert main(tiny.command("predict", "crafter", "--protect.out", str(store), *option)) == 2
    error = capsys.readouterr().err
    assert str(store) in error and "--protect.out" in error
    assert shards(store) == shards(tiny_store)
    assert (store / "manifest.json").read_bytes() == (tiny_store / "manifest.json").read_bytes()


def test_a_new_folder_for_every_set_of_settings(crafter, variant):
    names = {
        "beta1": {},
        "beta0.5": {"beta": 0.5},
        "beta2-per_batch": {"beta": 2.0, "critic": "per_batch"},
        "beta1-adapted": {"critic": "adapted"},
    }
    for name, options in names.items():
        assert crafter(**options).store_name() == name
    assert variant(CrafterZ, precision="float64").store_name() == "beta1-float64"


def test_killed_predict_goes_on(tiny, tiny_store, tmp_path):
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"))
    killed = in_subprocess([*command, "--trainer.callbacks+=kill.Kill"])
    assert killed.returncode == -9, killed.stderr
    before = shards(tmp_path / "store")
    assert sorted(before) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(UserError, match="the store is not finished"):
        read_store(tmp_path / "store")
    assert main(command) == 0
    assert shards(tmp_path / "store") == shards(tiny_store)
    assert read_store(tmp_path / "store")[2]["fingerprint"] == read_store(tiny_store)[2]["fingerprint"]


def test_a_full_disk_leaves_nothing_by_halves(tiny, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"))) == 2
    assert "No space left on device; give a place" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("shard-*"))


def test_two_processes_write_the_same_bytes(tiny, tiny_store, tmp_path):
    more = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"), *more)
    made = in_subprocess(command)
    assert made.returncode == 0, made.stderr
    assert "batch 2/2" in made.stdout  # each had two of the four
    assert shards(tmp_path / "store") == shards(tiny_store)
    ours, theirs = read_store(tmp_path / "store")[2], read_store(tiny_store)[2]
    assert ours.pop("cost") and theirs.pop("cost") and ours == theirs


# What features depend on


def realistic():
    """Nets of configs/: ResNet18 cut after layer1, G1 and critic at their widths; random, but calibrated."""
    torch.manual_seed(0)
    encoder = SplitClassifier("resnet18", "layer1", 12).eval()
    generator, critic = Generator("G1", 128, 32, 32), Critic(32, 24)
    amortizer = AmortizerNet((64, 8, 8), 128, 64)
    with torch.no_grad():
        for _ in range(8):  # batch norms see what they will be fed with
            images = generator(torch.randn(32, 128))
            amortizer(encoder.encode(images))
    for module in generator.modules():  # pictures of contrast, not grey ones
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
    nets = CraftNets(
        fold_batchnorm(encoder.encoder_module()),
        fold_batchnorm(generator),
        amortizer.eval().requires_grad_(False),
    )
    return nets, critic.requires_grad_(False)


@pytest.mark.parametrize("solver", ["gauss_newton", "cg", "neumann", "unroll"])
def test_an_outer_step_draws_each_latent_once(solver):
    """The pass at the inversion's end serves critic, solver and the next inversion; nothing changes by it."""
    nets, critic = realistic()
    settings = CraftSettings(steps=3, start_steps=2, inner_steps=2, iterations=2, solver=solver)
    with torch.no_grad():
        state = start_crafting(nets, nets.encoder(torch.rand(2, 3, 32, 32)), settings)
    alone = copy.copy(state)
    passes, counts = [], []
    nets.generator.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        passes.clear()
        state = craft_step(nets, critic, state, settings)
        counts.append(len(passes))
        alone.drawn = None
        alone = craft_step(nets, critic, alone, settings)
        assert torch.equal(state.features, alone.features) and torch.equal(state.z, alone.z)
    own = settings.iterations + 1 if solver == "unroll" else 0  # it walks on from there
    assert counts == [3 + own, 2 + own, 2 + own]


def test_one_picture_alone_equals_the_same_in_a_batch_of_64():
    """In float64; in float32 those do that meet no kink, and which these are hangs on the processor.

    Where a unit of the nets is within rounding of its ReLU's kink, alone and in a batch it may fall on either
    side, and the gradient jumps. This happens to some pictures in so many inversion steps, whatever one does.
    """
    nets, critic = realistic()
    nets = CraftNets(*(net.double() for net in (nets.encoder, nets.generator, nets.amortizer)))
    critic = critic.double()
    settings = CraftSettings(beta=1.0, lr=0.05, start_steps=2, inner_steps=1, iterations=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        images = nets.generator(torch.randn(64, 128, generator=generator).double())
        images = (images + 0.2 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
        clean = nets.encoder(images)
    some = (0, 37, 63)
    together = start_crafting(nets, clean, settings)
    singles = [start_crafting(nets, nets.encoder(images[i : i + 1]), settings) for i in some]
    for step in range(2):
        together = craft_step(nets, critic, together, settings)
        singles = [craft_step(nets, critic, state, settings) for state in singles]
        alone = torch.cat([state.features for state in singles])
        assert distance(alone, together.features[list(some)]).max() < 1e-10, step
    assert distance(together.features, clean).min() > 0.02  # they have been moved a lot further


def test_beta_and_neighbours_do_not_mix():
    """A face's result is the same beside faces that have other betas."""
    nets, critic = realistic()
    settings = CraftSettings(lr=0.05, start_steps=2, inner_steps=1, iterations=1)
    with torch.no_grad():
        clean = nets.encoder(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    states = [
        start_crafting(nets, clean, settings, torch.tensor(beta))
        for beta in ([1.0, 1.0, 1.0, 1.0], [1.0, 100.0, 300.0, 1000.0])
    ]
    for _ in range(3):
        states = [craft_step(nets, critic, state, settings) for state in states]
    a, b = (state.features for state in states)
    assert distance(a[:1], b[:1]) < 1e-5 and distance(a[1:], b[1:]).min() > 1e-3


def test_protect_of_one_picture_and_of_any_order(crafter, audited):
    images, index = audited
    assert torch.equal(crafter().protect(images, index), crafter().protect(images, index))
    stage = crafter(precision="float64")  # in float32 a kink may magnify the rounding
    together = stage.protect(images, index)
    alone = torch.cat([stage.protect(images[i : i + 1], index[i : i + 1]) for i in (0, 7)])
    assert distance(alone, together[[0, 7]]).max() < 1e-6  # the store's rounding
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert distance(stage.protect(images[order], index[order]), together[order]).max() < 1e-6


def test_the_first_inversion_does_not_depend_on_the_batch(crafter, audited):
    """In float64, and then rounded: the same for one picture, to the last bit or the one before it."""
    images, index = audited
    stage = crafter()
    assert stage.settings()["double_start"] and stage.settings()["precision"] == "float32"
    start = replace(stage.craft_settings, steps=0, task_weight=1.0)
    together, alone = (stage.craft(images[:n], index[:n], stage.options, start) for n in (len(images), 1))
    for name in ("z", "features", "answers"):
        a, b = getattr(together, name), getattr(alone, name)
        assert a.dtype == torch.float32 and torch.allclose(a[:1], b, rtol=2e-7, atol=1e-12), name
    single = stage.craft(images, index, stage.options, replace(start, double_start=False))
    assert 0 < distance(single.z, together.z).max() < 1e-2


@pytest.mark.parametrize("cls", [Crafter, CrafterZ])
def test_in_double_precision_a_whole_run_does_not_depend_on_the_batch(crafter, variant, audited, cls):
    images, index = audited
    make = crafter if cls is Crafter else partial(variant, cls)
    stage = make(precision="float64")
    assert stage.settings()["precision"] == "float64" and stage.store_name().endswith("-float64")
    together = stage.protect(images, index)
    assert together.dtype == torch.float32
    alone = torch.cat([stage.protect(images[i : i + 1], index[i : i + 1]) for i in range(0, 16, 5)])
    assert distance(alone, together[::5]).max() < 1e-6  # the store's rounding
    assert distance(make().protect(images, index), together).median() < 0.1


def test_bfloat16_points_where_float32_does():
    nets, critic = realistic()
    encoder, generator = (Bfloat16(copy.deepcopy(net)) for net in (nets.encoder, nets.generator))
    noise = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 8, 128, generator=noise)
    with torch.no_grad():
        features = nets.render(other)

    def directions(nets):
        leaf = z.clone().requires_grad_()
        _, v = privacy_gradient(critic, nets.generator(leaf), leaf)
        hyper = hypergradient("gauss_newton", nets.render, features, z, v, damping=1.0, iterations=2)
        return (
            v,
            hyper.y,
            hyper.grad,
            invert(nets.render, features, z, steps=1, lr=1e-3, optimizer="momentum").z - z,
        )

    for wide, narrow in zip(
        directions(nets), directions(replace(nets, encoder=encoder, generator=generator)), strict=True
    ):
        assert narrow.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(wide.flatten(1), narrow.flatten(1))
        assert 0.9 < cosine.min() < 1


def test_bfloat16_takes_the_clean_feature_from_the_encoder_itself(crafter, audited):
    images, index = audited
    stage = crafter(precision="bf16")
    state = stage.craft(images, index, stage.options, stage.options.on(stage.craft_settings))
    assert torch.equal(state.clean, stage.nets.encoder(images)) and state.z.dtype == torch.float32
    assert stage.store_name().endswith("-bf16")
    assert not torch.equal(state.features, crafter().protect(images, index))


def test_an_unknown_precision_is_refused(crafter):
    with pytest.raises(UserError, match="precision 'half': give one of bf16, float32, float64"):
        crafter(precision="half")


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_the_reference_has_one_precision(variant, audited, precision):
    with pytest.raises(UserError, match="released algorithm"):
        variant(CrafterReference, precision=precision).protect(*audited)


def test_a_critic_that_learns_can_do_so_in_double_precision(crafter, audited):
    images, index = audited[0][:4], audited[1][:4]
    single, double = (
        crafter(critic="adapted", precision=p).protect(images, index) for p in ("float32", "float64")
    )
    assert distance(single, double).median() < 0.1 and not torch.equal(single, double)


def test_the_seed_counts_where_noise_is_drawn(crafter, audited):
    images, index = audited[0][:4], audited[1][:4]
    fixed = crafter().protect(images, index)
    assert torch.equal(crafter(seed=1).protect(images, index), fixed)  # no noise at all
    adapted = crafter(critic="adapted").protect(images, index)
    assert torch.equal(crafter(critic="adapted").protect(images, index), adapted)
    assert not torch.equal(crafter(critic="adapted", seed=1).protect(images, index), adapted)
    assert not torch.equal(crafter(critic="adapted").protect(images, index + 100), adapted)


def test_noise_is_fresh_in_every_critic_update(crafter, audited, monkeypatch):
    streams = []
    for name in ("keyed_normal", "keyed_bits"):
        draw = getattr(crafter_module, name)

        def watched(*args, stream, draw=draw, **rest):
            streams.append(stream)
            return draw(*args, stream=stream, **rest)

        monkeypatch.setattr(crafter_module, name, watched)
    crafter(critic="adapted").protect(audited[0][:2], audited[1][:2])
    assert len(streams) == len(set(streams)) == 2 * 3  # three outer steps with an update each


def test_critics_that_learn_from_the_batch(crafter, audited):
    images, index = audited[0][:8], audited[1][:8]
    made = {
        critic: crafter(critic=critic).protect(images, index) for critic in ("fixed", "adapted", "per_batch")
    }
    assert all(features.isfinite().all() for features in made.values())
    assert distance(made["adapted"], made["fixed"]).min() > 1e-4
    assert distance(made["per_batch"], made["fixed"]).min() > 1e-2
    stage = crafter(critic="adapted")
    before = [p.clone() for p in stage.critic.parameters()]
    stage.protect(images, index)
    assert all(torch.equal(p, q) for p, q in zip(stage.critic.parameters(), before, strict=True))
    # That is what the paper's batch coupling means: the neighbours count.
    other = crafter(critic="per_batch").protect(images[:4], index[:4])
    assert distance(other, made["per_batch"][:4]).max() > 1e-4


def test_per_batch_through_the_command_line(tiny, tmp_path, crafter, audited):
    options = ["--protect.critic", "per_batch", "--protect.beta", "2", "--protect.name", "paper"]
    assert main(tiny.command("predict", "crafter", *options)) == 0
    features, _, manifest = read_store(tiny.folder / "crafter" / "features" / "private_test-paper")
    assert manifest["settings"]["critic"] == "per_batch" and manifest["settings"]["beta"] == 2.0
    run = tiny.folder / "crafter"
    told = [
        yaml.safe_load(path.read_text())["protect"]
        for path in sorted(run.glob("predict*.yaml"), key=os.path.getmtime)
    ]
    assert {"critic": "per_batch", "beta": 2.0, "name": "paper", "steps": None}.items() <= told[-1].items()
    expected = crafter(critic="per_batch", beta=2.0).protect(audited[0][:4], audited[1][:4])
    assert torch.equal(features[audited[1].argsort().argsort()[:4]], expected)


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
    with pytest.raises(UserError, match=r"polish_steps 40 follow .* task_weight must be above 0"):
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
    with pytest.raises(UserError, match="as good as unprotected"):
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
    blind = CraftNets(stage.nets.encoder, stage.nets.generator, stage.nets.amortizer)
    with pytest.raises(UserError, match="needs the cloud's classifier"):
        start_crafting(blind, stage.task.edge(images), replace(settings, task_weight=1.0))


# Fit


def test_validation_logs_what_crafting_does(tiny):
    with open(tiny.folder / "crafter" / "metrics.csv", newline="") as file:
        row = {k: float(v) for k, v in next(csv.DictReader(file)).items()}
    wanted = {
        "emd",
        "emd_unprotected",
        "utility_loss",
        "privacy_loss",
        "hypergradient_norm",
        "residual",
        "inner_loss",
    }
    assert {f"val/{name}" for name in wanted} <= row.keys()
    assert all(math.isfinite(value) for value in row.values())
    assert row["val/utility_loss"] > 0 and row["val/hypergradient_norm"] > 0 and 0 < row["val/residual"] < 1
    tags = (tiny.folder / "crafter").glob("events.out.tfevents.*")
    assert any(b"original_unprotected_crafted" in path.read_bytes() for path in tags)


def test_fit_teaches_the_critic_and_remembers(tiny, crafter):
    stage = crafter()
    torch.manual_seed(0)
    steps, faces = stage.craft_settings.steps, 8
    assert int(stage.remembered) == 2 * steps * faces  # two batches, every outer step
    assert stage.memory.shape == (16, 8) and (stage.memory.norm(dim=1) > 0).all()
    last = Path(tiny.ckpt("crafter")).with_name("last.ckpt")
    state = torch.load(last, weights_only=True)["optimizer_states"][0]
    assert state["state"][0]["step"] == 2 * steps * stage.craft_settings.critic_steps


def test_fit_of_several_processes_is_refused(crafter):
    stage = crafter().stage
    stage._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match=r"with one process \(--trainer\.devices 1\)"):
        stage.on_fit_start()


# Settings


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--protect.critic", "clever"], "give one of fixed, adapted, per_batch"),
        (["--protect.beta", "-1"], "beta"),
        (["--protect.steps", "-1"], "steps"),
        (["--data.predict_split", "everyone"], "no part of the data is called 'everyone'"),
    ],
)
def test_options_that_cannot_be_meant(option, words, tiny, tmp_path, capsys):
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"), *option)
    assert main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_settings_out_of_range(tiny):
    for bad in ({"beta": -1.0}, {"steps": -1}, {"lr": 0.0}, {"inner_steps": -1}, {"iterations": 0}):
        with pytest.raises(UserError, match="out of range"):
            replace(CraftSettings(), **bad)
    upstream = tiny.upstream("task", "prior", "amortizer")
    with pytest.raises(UserError, match="one of"):
        Crafter(**upstream, critic="clever").options()
