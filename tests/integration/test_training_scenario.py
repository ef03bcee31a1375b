"""The training scenario: what the cloud learns from, what is refused, and whose classifier an audit takes."""

import json
import re

import lightning as L
import pytest
import torch
from closeness import mean_auc
from experiment import DATA
from torch import nn

from crafter_pl.cli import main
from crafter_pl.data.features import StoreDataModule, protected_by
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.stages import CloudClassifier, TaskModel, load_stage


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("training_scenario") / "runs"


@pytest.fixture(scope="module")
def train(tiny, runs_dir):
    return tiny.trainer("training_scenario", runs_dir)


@pytest.fixture(scope="module")
def plain(train):
    return train("cloud")


@pytest.fixture(scope="module")
def learned(train, train_store, tiny_store):
    return train("cloud_crafter", train_store=train_store, test_store=tiny_store)


@pytest.fixture
def feed(tiny, train_store, tiny_store):
    made = StoreDataModule(str(train_store), str(tiny_store), **{**DATA, "batch_size": 4}, order_seed=3)
    made.setup()
    return made


# The data


def test_batches_are_the_stores_features_with_their_faces_labels(feed, tiny, train_store):
    data = tiny.data()
    features, index, _ = read_store(train_store)
    seen = list(feed.train_dataloader())
    order = torch.cat([batch["index"] for batch in seen])
    assert sorted(order.tolist()) == index.tolist() and order.tolist() != index.tolist()
    for batch in seen:
        assert sorted(batch) == ["attributes", "features", "identity", "index"] and len(batch["index"]) == 4
        place = torch.searchsorted(index, batch["index"])
        assert torch.equal(batch["features"], features[place])
        assert torch.equal(batch["attributes"], data.faces.attributes[batch["index"]].float())
        assert torch.equal(batch["identity"], data.faces.identity[batch["index"]])
    tested = torch.cat([batch["index"] for batch in feed.test_dataloader()])
    assert sorted(tested.tolist()) == data.dataset("private_test").index.tolist()


def test_any_lightning_module_takes_it(feed, tmp_path):
    class Mean(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.count = nn.Linear(64, 40), 0

        def training_step(self, batch, batch_idx):
            self.count += len(batch["index"])
            return self.net(batch["features"].mean((2, 3)))[:, : batch["attributes"].shape[1]].square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Mean()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, feed)
    assert module.count == 2 * len(feed.dataset("private_train"))


def test_stores_of_other_data_or_of_two_defences_are_refused(tiny, train_store, tiny_store, tmp_path):
    manifest = read_manifest(train_store)
    for change, said in (
        ({"split_hash": "0" * 64}, "made of another split"),
        ({"split": "private_test"}, "holds 16 features and not the"),
        ({"settings": {**manifest["settings"], "beta": 9.0}}, "different defences"),
    ):
        folder = tmp_path / said.replace(" ", "_")
        folder.mkdir()
        for file in train_store.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        text = json.dumps({**manifest, **change})
        (folder / "manifest.json").write_text(text)
        data = StoreDataModule(str(folder), str(tiny_store), **DATA)
        data.share(tiny.data())
        if "split" in change:
            data.splits["private_test"] = data.splits["private_test"][:3]
        with pytest.raises(UserError, match=said):
            data.setup()
    other_seed = {**manifest, "settings": {**manifest["settings"], "seed": 5}}
    assert protected_by(other_seed) == protected_by(manifest)


def test_a_feature_of_another_part_is_named(feed, train_store):
    labels = feed._labels("train")
    stranger = feed.dataset("private_test").index[:1]
    with pytest.raises(UserError, match="not of private_train"):
        labels(stranger)
    with pytest.raises(UserError, match="not of private_train"):
        labels(torch.tensor([10**6]))


# The classifier


def test_it_learns_from_scratch_or_goes_on(tiny, train, plain):
    task = load_stage(tiny.ckpt("task"), TaskModel)
    fresh = CloudClassifier(tiny.ckpt("task"))
    warm = CloudClassifier(tiny.ckpt("task"), fresh=False)
    weights = {name: value for name, value in task.net.cloud.named_parameters() if value.ndim > 1}
    assert weights
    for name, value in weights.items():
        assert torch.equal(warm.net.get_parameter(name), value), name
        assert not torch.equal(fresh.net.get_parameter(name), value), name
        assert fresh.net.get_parameter(name).requires_grad
    assert not any(p.requires_grad for p in fresh.task.parameters())
    stage = load_stage(plain, CloudClassifier)
    assert stage.hparams["learned_from"] is None
    assert stage.train_split == "private_train" and stage.monitor is None
    rows = tiny.data().rows("private_test")
    assert torch.equal(stage._features(rows), task.edge(rows["image"]))


def test_it_remembers_the_defence(learned, train_store):
    stage = load_stage(learned, CloudClassifier)
    assert stage.hparams["learned_from"] == protected_by(read_manifest(train_store))
    features, _, _ = read_store(train_store)
    assert torch.equal(stage._features({"features": features}), features)
    torch.manual_seed(0)
    mirrored = stage._features({"features": features}, augment=True)
    same = (mirrored == features).flatten(1).all(1)
    turned = (mirrored == features.flip(3)).flatten(1).all(1)
    assert bool((same | turned).all()) and 0 < int(same.sum()) < len(same)


def test_test_measures_the_same_features(learned, tiny, runs_dir, capsys, tiny_store):
    config = tiny.command("test", "training_scenario")[1:3]
    assert main(["test", *config, "--runs_dir", str(runs_dir), "--name", "cloud_crafter"]) == 0
    shown = float(re.search(r"test/mean_auc[^\d]+([\d.]+)", capsys.readouterr().out)[1])
    stage = load_stage(learned, CloudClassifier)
    features, index, _ = read_store(tiny_store)
    rows = tiny.data().rows("private_test")
    assert torch.equal(index, rows["index"])
    with torch.no_grad():
        expected = mean_auc(stage(features), rows["attributes"])
    assert shown == pytest.approx(expected, abs=1e-5)


def test_one_store_alone_or_swapped_ones_are_refused(train, train_store, tiny_store, capsys):
    train("alone", train_store=train_store, code=2)
    assert "give both stores" in capsys.readouterr().err
    train("swapped", train_store=tiny_store, test_store=train_store, code=2)
    assert "expected private_train" in capsys.readouterr().err


# The audit


def test_the_audit_takes_the_classifier_that_has_learned_from_the_features(
    tiny, plain, learned, tiny_store, tmp_path
):
    out = tmp_path / "audit"
    assert main(tiny.audit("--out", str(out), "--clouds", f"[{learned}, {plain}]")) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["clouds"] == [learned, plain]
    assert set(report["areas"]) == {"inference", "training"}
    page, table = (out / "report.html").read_text(), (out / "table.csv").read_text()
    assert "mean AUC, training scenario" in page and "mean_auc_training" in table
    rows = tiny.data().rows("private_test")
    task = load_stage(tiny.ckpt("task"), TaskModel)
    with torch.no_grad():
        given = (task.edge(rows["image"]), read_store(tiny_store)[0])
    for entry, path, features in zip(report["defenses"], (plain, learned), given, strict=True):
        for name, cloud in (
            ("utility", task.cloud),
            ("utility_training", load_stage(path, CloudClassifier)),
        ):
            with torch.no_grad():
                scores = cloud(features)
            expected = mean_auc(scores, rows["attributes"])
            assert entry[name]["mean_auc"]["value"] == pytest.approx(expected, abs=1e-4), entry["label"]
            assert entry["on_front"][name] in (True, False)
    only = tmp_path / "only"
    assert main(tiny.audit("--out", str(only), "--clouds", f"[{plain}]")) == 0
    none, crafted = json.loads((only / "report.json").read_text())["defenses"]
    assert none["utility_training"] == report["defenses"][0]["utility_training"]
    assert "utility_training" not in crafted and crafted["attacks"] == report["defenses"][1]["attacks"]


def test_the_audit_refuses_clouds_that_do_not_fit(tiny, plain, learned, tmp_path, capsys):
    bare = tiny.command("audit", "audit", "--features", "[]", "--oracles", f"[{tiny.ckpt('oracle_resnet')}]")
    for number, (clouds, said) in enumerate(
        (
            ([learned], "no cloud classifier has learned from unprotected"),
            ([plain, plain], "two of the cloud classifiers have learned from unprotected"),
            ([tiny.ckpt("task")], "is a checkpoint of TaskModel, expected one of CloudClassifier"),
            ([plain, learned], "has learned from none of these features"),
        )
    ):
        out = tmp_path / str(number)
        command = bare if number == 3 else tiny.audit()
        assert main([*command, "--out", str(out), "--clouds", f"[{', '.join(clouds)}]"]) == 2
        assert said in capsys.readouterr().err
        assert not (out / "report.json").exists()
