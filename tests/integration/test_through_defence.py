"""Inversion through the defence: what its nets learn, their rounds and processes, what the attack sees."""

import json

import pytest
import torch
from closeness import near
from experiment import in_subprocess
from rounds import ROUNDS, TWO, WHOLE, fit_in_parts, same, weights

from crafter_pl.attacks.base import Target
from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.through_defence import ThroughDefenceAttack
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.nets import FeatureMap
from crafter_pl.stages import load_stage, sha256
from crafter_pl.stages.checkpoints import read_checkpoint


def fit(tiny, name, *more):
    return tiny.command("fit", "surrogate", "--name", name, *more)


@pytest.fixture(scope="module")
def trained(tiny):
    """Two rounds, by one process."""
    assert main(fit(tiny, "surrogate", *ROUNDS, *WHOLE)) == 0
    return tiny.folder / "surrogate"


@pytest.fixture(scope="module")
def target(tiny_store):
    return Target(read_manifest(tiny_store), None)


# The nets


def test_a_feature_map_at_first_changes_nothing():
    torch.manual_seed(0)
    net, features = FeatureMap((6, 4, 4), width=5, blocks=1, hidden=3), 3 + 2 * torch.randn(7, 6, 4, 4)
    features[:, 0] = 0  # a dead channel
    net.measure(features)
    assert torch.allclose(net.mean[1:], torch.full((5, 1, 1), 3.0), atol=0.6) and (net.std > 0).all()
    assert torch.equal(net(features), features)
    net(features).square().sum().backward()
    assert net.head.weight.grad.abs().max() > 0


def held_out(tiny):
    folder = next((tiny.folder / "queries").glob("*/public_val"))
    features, index, _ = read_store(folder, split="public_val")
    return features, tiny.data().dataset("public_val").take(index)["image"]


def test_rounds_start_from_nothing_and_are_kept(tiny, trained):
    crafted, images = held_out(tiny)
    told = json.loads((trained / "summary.json").read_text())["metrics"]
    errors = {}
    for number, progress in enumerate([(0, 0, 0), (1, 16, 2), (2, 32, 4)]):
        file = trained / "checkpoints" / f"round-{number:02d}.ckpt"
        said = read_checkpoint(file)["adaptation"]
        assert (said["round"], said["pairs"], said["epochs"]) == progress
        stage = load_stage(file, DefenseSurrogate)
        with torch.no_grad():
            clean = stage.defense.task.edge(images)
            change = (crafted - clean).flatten(1).norm(dim=1)
            wrong = stage.doing(clean) - crafted, stage.undoing(crafted) - clean
        errors[number] = [float((part.flatten(1).norm(dim=1) / change).mean()) for part in wrong]
    assert errors[0] == pytest.approx([1, 1], abs=1e-5)
    assert errors[2] == pytest.approx([told["val/error"], told["val/undone"]], rel=1e-4)
    assert max(errors[2]) < 0.995  # 1 is what has learned nothing
    assert (stage.doing.mean.abs() > 0).any() and torch.equal(stage.doing.std, stage.undoing.std)


@pytest.mark.parametrize("when", ["in the second round", "added rounds"])
def test_resumed_equals_straight(tiny, trained, when):
    name = f"stopped-{when.split()[0]}"
    command = fit(tiny, name, *ROUNDS, *WHOLE)
    fit_in_parts(command, when)
    assert same(weights(tiny.folder / name), weights(trained))


def test_two_processes_give_the_losses_of_one(tiny, trained, tmp_path):
    more = [*ROUNDS, *WHOLE, "--model.init_args.pairs_per_round", "24"]
    more += ["--trainer.callbacks+=ranks.Losses", "--model.init_args.queries_dir", str(tmp_path)]
    more += ["--trainer.precision", "64-true"]  # two processes add up in another order
    assert main(fit(tiny, "maps-one", *more)) == 0
    two = in_subprocess(fit(tiny, "maps-two", *more, *TWO), twin=True)
    assert two.returncode == 0, two.stderr
    one, two = (
        json.loads((tiny.folder / f"maps-{name}" / "losses.json").read_text()) for name in ("one", "two")
    )
    assert len(one) == len(two) == 3 + 3 + 6 + 6
    assert one == pytest.approx(two, rel=1e-9)
    assert one[-1] < 0.9 * one[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "width 0"),
        ({"hidden": 0}, "hidden 0"),
        ({"lr": 0.0}, "lr 0.0"),
    ],
)
def test_settings_of_the_nets_out_of_range(tiny, settings, words):
    with pytest.raises(UserError, match=words):
        DefenseSurrogate(tiny.ckpt("crafter"), **settings)


# The attack


def aimed(tiny, target, **settings):
    attack = ThroughDefenceAttack(**{"steps": 2, "lr": 0.1, "batch_size": 2, **settings})
    return attack.against(target, tiny.commands, [tiny.ckpt("surrogate")])  # other files' tests train others


def test_the_objective_and_the_starts(tiny, trained, target):
    """Both terms, of the best iterate, from the amortizer's latents of Q(F) and of F."""
    features = torch.rand(5, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    attack = aimed(tiny, target, weight=3.0, steps=0, restarts=2)
    attack.prepare("cpu")
    alike = attack.amortizer  # the tiny one's latents are nearly the same for any feature
    attack.amortizer = lambda part: 1e4 * (alike(part) - alike(features[:1]))
    stage = load_stage(trained / "checkpoints" / "best.ckpt", DefenseSurrogate)
    with torch.no_grad():
        undone = stage.undoing(features)
        starts = [attack.amortizer(part) for part in (undone, features)]
        values = []
        for z in starts:
            seen = attack.encoder(attack.generator(z))
            terms = stage.doing(seen) - features, seen - undone
            values.append(sum(w * t.square().flatten(1).sum(1) for w, t in zip((1, 3), terms, strict=True)))
            assert torch.allclose(attack.objective(features)(seen), values[-1], rtol=1e-4)
        first = (values[0] <= values[1])[:, None]
        expected = attack.generator(torch.where(first, *starts))
    found = attack.reconstruct(features)
    assert near(found, expected, steps=10) and not found.requires_grad


def test_on_unprotected_features_it_is_the_white_box_attack(tiny, trained, target):
    features = torch.rand(3, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    attack, plain = aimed(tiny, target), WhiteBoxAttack(steps=2, lr=0.1, batch_size=2)
    plain = plain.against(None, tiny.commands)
    plain.prepare("cpu")
    best = trained / "checkpoints" / "best.ckpt"
    told = json.loads(json.dumps(attack.describe()))
    assert told["checkpoints"] == {**plain.describe()["checkpoints"], "surrogate": sha256(best)}
    assert told["settings"] == {**plain.settings(), "weight": attack.weight, "verify": False}
    attack.prepare("cpu")
    found = attack.reconstruct(features)
    assert found.shape == (3, 3, 32, 32) and 0 <= found.min() < found.max() <= 1
    attack = aimed(tiny, None)
    attack.prepare("cpu")
    assert torch.equal(attack.reconstruct(features), plain.reconstruct(features))
    assert {**attack.describe(), "name": ""} == {**plain.describe(), "name": ""}


def test_its_rounds_are_its_history(tiny, trained, target):
    features = torch.rand(2, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    attack = aimed(tiny, target, name="other_name")
    moments = attack.history()
    assert [moment for moment, _ in moments] == [
        {"round": n, "pairs": 16 * n, "epochs": 2 * n} for n in range(3)
    ]
    for number, (_, earlier) in enumerate(moments):
        file = trained / "checkpoints" / f"round-{number:02d}.ckpt"
        assert earlier.describe()["checkpoints"] == {
            **attack.describe()["checkpoints"],
            "surrogate": sha256(file),
        }
    earlier.prepare("cpu")
    attack.prepare("cpu")
    assert torch.equal(earlier.reconstruct(features), attack.reconstruct(features))
    assert aimed(tiny, None).history() == []


def test_nothing_was_trained_against_this_defence(tiny, trained, target):
    manifest = {**target.manifest, "settings": {**target.manifest["settings"], "beta": 0.5}}
    with pytest.raises(UserError, match=r"crafter \(beta 0\.5\)") as error:
        aimed(tiny, Target(manifest, None), prior_ckpt="elsewhere/prior.ckpt")
    line = str(error.value).partition("python -m crafter_pl fit ")[2]
    assert line.startswith("--config configs/attacks/surrogate.yaml")
    assert "--model.init_args.protect.beta 0.5" in line and "--name surrogate-crafter-beta0.5" in line
    assert "prior" not in line  # the nets do not depend on it
    with pytest.raises(UserError, match="through_defence"):
        aimed(tiny, Target(manifest, None), ckpt=str(trained / "checkpoints" / "round-01.ckpt"))


def test_settings_of_the_attack_out_of_range():
    with pytest.raises(UserError, match=r"weight -1\.0"):
        ThroughDefenceAttack(weight=-1.0)
    assert ThroughDefenceAttack().adaptive
