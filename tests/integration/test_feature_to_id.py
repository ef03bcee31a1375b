"""Feature to identity: what it learns from, whom it names, and which net it takes for which defence."""

import json
import re
from pathlib import Path

import pytest
import torch
from closeness import near
from torch.nn import functional as F

from crafter_pl.attacks import FeatureToID, FeatureToIdentity, Ruler, Target
from crafter_pl.cli import main
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import Commands, settings_of
from crafter_pl.data.features import protected_by
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.nets import FeatureHead
from crafter_pl.stages import TaskModel, load_stage, sha256


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("feature_to_id") / "runs"


@pytest.fixture(scope="module")
def train(tiny, runs_dir):
    return tiny.trainer("feature_to_id", runs_dir)


@pytest.fixture(scope="module")
def plain(train):
    return train("feature_to_id")


@pytest.fixture(scope="module")
def adapted(train, plain, train_store, tiny_store):
    return train("adapted", train_store=train_store, test_store=tiny_store, init_from=plain)


# The net


@pytest.mark.parametrize("shape", [(64, 8, 8), (16, 16, 16), (8, 4, 4), (5, 2, 2)])
def test_the_head_takes_features_of_any_shape(shape):
    net = FeatureHead(shape, 7, width=4, embedding=6)
    embedded = net.embed(torch.randn(3, *shape))
    assert torch.allclose(embedded.norm(dim=1), torch.ones(3), atol=1e-5)
    cosines = net.cosines(embedded)
    assert cosines.shape == (3, 7) and cosines.abs().max() <= 1 + 1e-5


def test_the_head_learns_people_whatever_the_features_scale():
    torch.manual_seed(0)
    people = torch.randn(5, 8, 8, 8)
    for scale in (0.1, 10.0):
        net = FeatureHead((8, 8, 8), 5, width=4, embedding=8, dropout=0.0)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        label = torch.arange(5).repeat(4)

        def noisy(scale=scale, label=label):
            return scale * (people[label] + torch.randn(len(label), 8, 8, 8))

        for _ in range(80):
            loss = F.cross_entropy(20 * net.cosines(net.embed(noisy())), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            hits = net.cosines(net.embed(noisy())).argmax(1) == label
        assert hits.float().mean() > 0.9, scale


# What it learns from


def test_unprotected_features_of_other_pictures(plain, tiny):
    stage, data = load_stage(plain, FeatureToIdentity), tiny.data()
    assert stage.train_split == "oracle" and stage.val_split == "private_test" and stage.monitor is None
    assert stage.hparams["identities"] == data.private_identities.tolist()
    assert stage.hparams["public_identities"] == data.public_identities.tolist()
    assert stage.hparams["learned_from"] is None
    batch = data.rows("private_test")
    task = load_stage(tiny.ckpt("task"), TaskModel)
    with torch.no_grad():
        features = stage._features(batch, "private_test", augment=False)
        assert torch.equal(features, task.edge(batch["image"]))
        other = stage._features(batch, "private_test", augment=True)
        assert stage.logits(features).shape == (16, 4)
    assert not torch.allclose(other, features, atol=1e-3)
    named = stage.classes(batch["identity"])
    assert torch.equal(torch.tensor(stage.hparams["identities"])[named], batch["identity"])
    assert int(stage.classes(data.public_identities).min()) == 4
    with pytest.raises(UserError, match="does not know person 9999"):
        stage.classes(torch.tensor([9999]))


def test_private_people_alone(train):
    stage = load_stage(train("alone", public_people=False), FeatureToIdentity)
    assert stage.train_split == "private_train" and stage.hparams["public_identities"] is None
    assert len(stage.people) == stage.net.centres.shape[0] == 4


def test_crafted_features_from_the_store(adapted, plain, tiny, train_store, tiny_store):
    stage, data = load_stage(adapted, FeatureToIdentity), tiny.data()
    manifest = read_manifest(train_store)
    assert stage.train_split == "private_train" and stage.hparams["learned_from"] == protected_by(manifest)
    assert stage.hparams["public_identities"] == data.public_identities.tolist()  # its start's classes
    for part, store in (("private_train", train_store), ("private_test", tiny_store)):
        stage.trainer = type("T", (), {"datamodule": data})()
        stage._read(str(store), part)
        features, index, _ = read_store(store)
        rows = data.rows(part)
        mixed = torch.randperm(len(rows["index"]))
        found = stage._features({"index": rows["index"][mixed]}, part, augment=True)
        assert torch.equal(found, features[torch.searchsorted(index, rows["index"][mixed])])


def test_it_starts_from_another_ones_weights(train, plain, train_store):
    same = train("start", train_store=train_store, init_from=plain, lr="0.0", weight_decay="0.0")
    mine, start = (load_stage(path, FeatureToIdentity).net for path in (same, plain))
    for (name, a), b in zip(mine.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_its_own_figure(adapted, tiny, tiny_store, capsys, runs_dir):
    """`test` after reload gives what the last validation gave, on the features of the same store."""
    config = tiny.command("test", "feature_to_id")[1:3]
    command = ["test", *config, "--runs_dir", str(runs_dir), "--name", "adapted"]
    assert main([*command, "--data.batch_size", "16"]) == 0
    shown = float(re.search(r"test/accuracy[^\d]+([\d.]+)", capsys.readouterr().out)[1])
    stage = load_stage(adapted, FeatureToIdentity)
    rows = tiny.data().rows("private_test")
    features = read_store(tiny_store)[0][rows["index"].argsort().argsort()]
    with torch.no_grad():
        hits = stage.logits(features).argmax(1) == stage.classes(rows["identity"])
    assert shown == pytest.approx(hits.float().mean().item())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_store": "tiny_store"}, "private_train"),
        ({"init_from": "plain", "width": 4}, "sizes"),
        ({"init_from": "task"}, "FeatureToIdentity"),
    ],
)
def test_what_does_not_fit(settings, words, train, plain, tiny, tiny_store, capsys):
    places = {"tiny_store": tiny_store, "plain": plain, "task": tiny.ckpt("task")}
    train("refused", code=2, **{key: places.get(value, value) for key, value in settings.items()})
    assert words in capsys.readouterr().err


# The ruler


def test_the_ruler_names_people(plain, runs_dir, tiny):
    ruler = FeatureToID(batch_size=5).against(None, Commands(runs_dir / "synthetic"))
    assert isinstance(ruler, Ruler)
    ruler.prepare("cpu")
    data, stage = tiny.data(), load_stage(plain, FeatureToIdentity)
    features = stage._features(data.rows("private_test"), "private_test", augment=False)
    logits = ruler.identify(features)
    assert near(logits, stage.logits(features), steps=10) and not logits.requires_grad
    assert ruler.identities.tolist() == data.private_identities.tolist()
    told = json.loads(json.dumps(ruler.describe()))
    assert told == {
        "name": "feature_to_id",
        "class": "FeatureToID",
        "version": 1,
        "settings": {"adapted": False},
        "checkpoints": {"feature_to_id": sha256(plain)},
    }


def test_it_takes_the_net_that_learned_from_this_defence(plain, adapted, tiny_store):
    configured = FeatureToID(plain, adapted=[adapted])
    manifest = read_manifest(tiny_store)
    other = {**manifest, "settings": {**manifest["settings"], "beta": 9.0}}
    retrained = {**manifest, "defense_sha256": "0" * 64}
    newer = {**manifest, "version": manifest["version"] + 1}
    seeded = {**manifest, "settings": {**manifest["settings"], "seed": 5}}
    unseeded = {**manifest, "settings": {k: v for k, v in manifest["settings"].items() if k != "seed"}}
    for target, path in (
        (Target(manifest, None), adapted),
        (None, plain),
        (Target(manifest, None), adapted),
        (Target(other, None), plain),
        (Target(seeded, None), adapted),
        (Target(unseeded, None), adapted),
        (Target(retrained, None), plain),
        (Target(newer, None), plain),
    ):
        ruler = configured.against(target, Commands(Path("nowhere")))
        assert ruler.describe()["checkpoints"] == {"feature_to_id": sha256(path)}
        assert ruler.settings() == {"adapted": path == adapted}
        ruler.prepare("cpu")
        assert (ruler.net.hparams["learned_from"] is not None) == (path == adapted)


def test_it_finds_what_has_learnt_and_names_the_commands_that_train_it(
    plain, adapted, runs_dir, tiny, tiny_store
):
    home = runs_dir / "synthetic"
    configured, commands = FeatureToID(), Commands(home, settings_of(tiny.data()))
    manifest = read_manifest(tiny_store)
    ruler = configured.against(Target(manifest, None), commands)
    assert ruler.learnt and ruler.checkpoint("feature_to_id") != plain
    other = Target(
        {**manifest, "settings": {**manifest["settings"], "beta": 9.0}}, None, checkpoint=tiny.ckpt("crafter")
    )
    ruler = configured.against(other, commands)
    assert not ruler.learnt and ruler.checkpoint("feature_to_id") == plain
    first, second = (StageCLI(line.partition("#")[0].split()[3:]) for line in ruler.train(other))
    store = first.options.protect.out
    assert first.verb == "predict" and first.options.protect.beta == 9.0
    assert (
        first.options.data.init_args.predict_split == "private_train"
        and first.options.ckpt_path == tiny.ckpt("crafter")
    )
    init = second.options.model.init_args
    assert second.verb == "fit" and init.train_store == store and init.init_from == plain
    assert second.experiment_dir == home and second.name != "feature_to_id"
    for one in (first, second):
        assert one.options.data.init_args.people == tiny.data().people
