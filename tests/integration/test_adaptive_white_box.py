"""The adaptive white-box attack: what it learns and from where it inverts, its rounds, several processes."""

import copy
import json

import pytest
import torch
from closeness import near
from experiment import in_subprocess
from rounds import ROUNDS, TWO, WHOLE, fit_in_parts, same, weights
from torch.nn import functional as F
from white_box_lab import PAPER, stage  # noqa: F401

from crafter_pl.attacks.adaptive_white_box import AdaptiveWhiteBox, AdaptiveWhiteBoxAttack
from crafter_pl.attacks.base import Target
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.cli import main
from crafter_pl.crafting.inversion import invert
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.stages import Amortizer, GanPrior, load_stage, sha256
from crafter_pl.stages.checkpoints import read_checkpoint

KINDS = {"adapted": [], "paper": PAPER}

NAMES = {"adapted": "adaptive_white_box", "paper": "white_paper"}


def fit(tiny, name, *more):
    return tiny.command("fit", "adaptive_white_box", "--name", name, *more)


@pytest.fixture(scope="module")
def trained(tiny):
    """Two rounds of each kind, by one process: with an adapted amortizer, and as in the paper."""
    for kind, more in KINDS.items():
        assert main(fit(tiny, NAMES[kind], *ROUNDS, *WHOLE, *more)) == 0
    return {kind: tiny.folder / name for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def batch(tiny):
    """Six public faces and features that no face has, in float64."""
    data = tiny.data().dataset("public_train")
    features = torch.rand(6, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = data.take(data.index[:6])
    return {**rows, "image": rows["image"].double(), "features": features.double()}


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_start_from_the_prior_and_are_kept(tiny, trained, kind):
    folder = trained[kind] / "checkpoints"
    for number, progress in enumerate([(0, 0, 0), (1, 16, 2), (2, 32, 4)]):
        said = read_checkpoint(folder / f"round-{number:02d}.ckpt")["adaptation"]
        assert (said["round"], said["pairs"], said["epochs"]) == progress
    rounds = [load_stage(folder / f"round-{number:02d}.ckpt", AdaptiveWhiteBox) for number in range(3)]
    prior, amortizer = (
        load_stage(tiny.ckpt(name), cls) for name, cls in (("prior", GanPrior), ("amortizer", Amortizer))
    )
    assert same(rounds[0].generator.state_dict(), prior.generator.state_dict())
    assert not same(rounds[1].generator.state_dict(), rounds[2].generator.state_dict())
    if kind == "adapted":
        assert same(rounds[0].amortizer.state_dict(), amortizer.net.state_dict())
        assert not same(rounds[1].amortizer.state_dict(), rounds[2].amortizer.state_dict())
        assert "latents" not in read_checkpoint(folder / "last.ckpt")
    else:
        assert rounds[2].amortizer is None
        index, z = read_checkpoint(folder / "last.ckpt")["latents"]
        assert z.shape == (32, 8) and index.tolist() == sorted(set(index.tolist()))
        assert set(index.tolist()) <= set(tiny.data().dataset("public_train").index.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_adaptation_helps_on_held_out_faces(tiny, trained, kind):
    folder = next((tiny.folder / "queries").glob("*/public_val"))
    features, index, _ = read_store(folder, split="public_val")
    images = tiny.data().dataset("public_val").take(index)["image"]

    def error(name):
        stage = load_stage(trained[kind] / "checkpoints" / f"{name}.ckpt", AdaptiveWhiteBox)
        with torch.no_grad():
            return F.mse_loss(stage.reconstruct(features), images).item()

    said = json.loads((trained[kind] / "summary.json").read_text())["metrics"]
    assert error("last") == pytest.approx(said["val/l2"], rel=1e-3)
    assert error("best") == error("last")  # the last round, not the smallest error
    assert error("best") < error("round-00")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["in the second round", "added rounds"])
def test_resumed_equals_straight(tiny, trained, kind, when):
    name = f"{NAMES[kind]}-{when.split()[0]}"
    command = fit(tiny, name, *ROUNDS, *WHOLE, *KINDS[kind])
    fit_in_parts(command, when)
    assert same(weights(tiny.folder / name), weights(trained[kind]))


def inverted(made, features, z, steps):
    """What inversion finds by the generator as it is now, in eval mode."""
    generator = copy.deepcopy(made.generator).eval()
    return invert(lambda z: made.defense.task.edge(generator(z)), features, z, steps=steps, lr=0.01).z


@pytest.mark.parametrize(("loss", "steps"), [("l1", 3), ("l2", 3), ("l2", 0)])
def test_loss_with_an_adapted_amortizer(stage, batch, loss, steps):
    """Against its formula: the pictures at the start and after the inversion, the latter's latents fixed."""
    made = stage(loss=loss, inversion_steps=steps)
    features, images = batch["features"], batch["image"]
    made.amortizer.eval()  # so that the start can be computed twice
    z0 = made.start(features)
    latents = [z0, inverted(made, features, z0, steps)] if steps else [z0]
    pictures = copy.deepcopy(made.generator)(torch.cat(latents))
    metric = F.l1_loss if loss == "l1" else F.mse_loss
    expected = metric(pictures, torch.cat([images] * len(latents)))
    value = made.training_step(batch, 0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    grads = [p.grad for p in made.amortizer.parameters()]
    assert all(p.grad is not None for p in made.parameters())
    # The amortizer learns from the pictures at the start alone: the other latents are held fixed.
    for mine, formula in zip(
        grads, torch.autograd.grad(expected, list(made.amortizer.parameters())), strict=True
    ):
        assert torch.allclose(mine, formula, rtol=1e-6, atol=1e-12)
    assert all(p.grad is None for p in made.defense.parameters())
    for name in ("prior", "amortizer"):  # what is published stays as it is
        assert all(p.grad is None and not p.requires_grad for p in made.upstream[name].parameters())


def test_as_in_the_paper_each_sample_is_followed_from_its_last_latent(stage, batch):
    made = stage(amortize=False, inversion_steps=2)
    features, index = batch["features"], batch["index"]
    with torch.no_grad():
        z0 = made.upstream["amortizer"](features)
    expected = inverted(made, features, z0, 2)
    made.training_step(batch, 0)
    kept = torch.stack([made._last[int(i)] for i in index])
    assert torch.allclose(kept, expected, atol=1e-8)
    # Seen again, in another order and beside a sample that is new.
    del made._last[int(index[0])]
    rows = torch.tensor([4, 0, 2])
    expected = inverted(made, features[rows], torch.stack([kept[4], z0[0], kept[2]]), 2)
    value = made.training_step({key: part[rows] for key, part in batch.items()}, 1)
    found = torch.stack([made._last[int(i)] for i in index[rows]])
    assert torch.allclose(found, expected, atol=1e-8)
    assert torch.equal(made._last[int(index[1])], kept[1]) and len(made._last) == 6
    value.backward()
    assert all(p.grad is not None for p in made.generator.parameters())
    assert [name for name, _ in made.named_parameters() if not name.startswith("generator.")] == []


def test_it_inverts_through_the_encoder_that_the_defence_publishes(stage, batch, monkeypatch):
    features = batch["features"]

    def by_hand(made, encoder):
        z = invert(lambda z: encoder(made.generator(z)), features, made.start(features), steps=4, lr=0.5).z
        return made.generator(z)

    made, other = (stage(attack_steps=4, inversion_lr=0.5).eval() for _ in range(2))
    retrained = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 4, 4)).requires_grad_(False).double()
    with torch.no_grad():
        before = made.reconstruct(features)
        assert torch.allclose(before, by_hand(made, made.defense.task.edge), atol=1e-8)
        monkeypatch.setattr(type(other.defense), "edge_module", lambda self: retrained)
        found = other.reconstruct(features)
        assert torch.allclose(found, by_hand(other, retrained), atol=1e-8)
    assert (found - before).abs().max() > 1e-4  # ten thousand times what rounding does


# The attack


def test_the_attack_is_the_stage_on_crafted_features_and_plain_on_others(tiny, tiny_store, trained):
    manifest = read_manifest(tiny_store)
    features = torch.rand(5, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    configured = AdaptiveWhiteBoxAttack(steps=3, restarts=2, batch_size=2)
    attack = configured.against(Target(manifest, None), tiny.commands)
    best = trained["adapted"] / "checkpoints" / "best.ckpt"
    told = attack.describe()
    assert told["checkpoints"] == {"adaptive_white_box": sha256(best)} and told["settings"] == {}
    attack.prepare("cpu")
    found = attack.reconstruct(features)
    with torch.no_grad():
        expected = load_stage(best, AdaptiveWhiteBox).reconstruct(features)
    assert near(found, expected, steps=10) and not found.requires_grad
    assert 0 <= found.min() < found.max() <= 1
    attack = configured.against(None, tiny.commands)
    attack.prepare("cpu")
    plain = WhiteBoxAttack(steps=3, restarts=2, batch_size=2)
    plain = plain.against(None, tiny.commands)
    plain.prepare("cpu")
    assert torch.equal(attack.reconstruct(features), plain.reconstruct(features))
    assert {**attack.describe(), "name": ""} == {**plain.describe(), "name": ""}


def test_its_rounds_are_its_history(tiny, tiny_store, trained):
    """Before the first round it is the plain attack, with the settings that it has on other features."""
    configured = AdaptiveWhiteBoxAttack(steps=3, restarts=1)
    assert configured.against(None, tiny.commands).history() == []
    target = Target(read_manifest(tiny_store), None)
    attack = configured.against(target, tiny.commands)
    moments = attack.history()
    assert [moment for moment, _ in moments] == [
        {"round": 0, "pairs": 0, "epochs": 0},
        {"round": 1, "pairs": 16, "epochs": 2},
        {"round": 2, "pairs": 32, "epochs": 4},
    ]
    features = torch.rand(2, 64, 8, 8)
    plain, before = WhiteBoxAttack(steps=3, restarts=1), moments[0][1]
    plain = plain.against(None, tiny.commands)
    assert before.target == target and before.name == attack.name
    assert before.describe() == {**plain.describe(), "name": attack.name}
    for one in (plain, before):
        one.prepare("cpu")
    assert torch.equal(before.reconstruct(features), plain.reconstruct(features))
    for number, (_, earlier) in list(enumerate(moments))[1:]:
        file = trained["adapted"] / "checkpoints" / f"round-{number:02d}.ckpt"
        assert earlier.describe()["checkpoints"] == {"adaptive_white_box": sha256(file)}
        earlier.prepare("cpu")
        with torch.no_grad():
            expected = load_stage(file, AdaptiveWhiteBox).reconstruct(features)
        assert near(earlier.reconstruct(features), expected, steps=10)
    assert attack.checkpoint("adaptive_white_box").endswith("best.ckpt")


def test_nothing_was_trained_against_this_defence(tiny, tiny_store, trained):
    manifest = read_manifest(tiny_store)
    manifest["settings"]["beta"] = 0.5
    with pytest.raises(UserError, match=r"crafter \(beta 0\.5\)") as error:
        AdaptiveWhiteBoxAttack().against(Target(manifest, None), tiny.commands)
    line = str(error.value).partition("python -m crafter_pl fit ")[2]
    assert line.startswith("--config configs/attacks/adaptive_white_box.yaml")
    assert "--model.init_args.protect.beta 0.5" in line


# Several processes


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_of_one(tiny, trained, kind, tmp_path):
    """The generator's updates; and the paper's latents by sample, which cross processes between epochs."""
    more = [*ROUNDS, *WHOLE, *KINDS[kind], "--model.init_args.pairs_per_round", "24"]
    more += ["--trainer.callbacks+=ranks.Losses", "--model.init_args.queries_dir", str(tmp_path)]
    more += ["--trainer.precision", "64-true"]  # two processes add up in another order
    assert main(fit(tiny, f"{kind}-one", *more)) == 0
    two = in_subprocess(fit(tiny, f"{kind}-two", *more, *TWO), twin=True)
    assert two.returncode == 0, two.stderr
    folders = [tiny.folder / f"{kind}-{name}" for name in ("one", "two")]
    one, two = (json.loads((folder / "losses.json").read_text()) for folder in folders)
    assert len(one) == len(two) == 3 + 3 + 6 + 6
    assert one == pytest.approx(two, rel=1e-9)
    assert max(one[:3]) - min(one[:3]) > 1e-3  # something is learned in three steps
    if kind == "paper":
        (rows, z), (other, found) = (
            read_checkpoint(folder / "checkpoints" / "round-01.ckpt")["latents"] for folder in folders
        )
        assert torch.equal(rows, other) and len(rows) == 24
        assert near(z, found, steps=10)
