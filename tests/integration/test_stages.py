"""Stages: trained by the command line, rebuilt from their own checkpoints, upstream nets untouched."""

import hashlib
import shutil

import pytest
import torch
from closeness import mean_auc
from experiment import STAGES
from stages_lab import figures, outputs

from crafter_pl.attacks import BlackBox
from crafter_pl.cli import main, run
from crafter_pl.defenses import Crafter
from crafter_pl.errors import UserError
from crafter_pl.stages import Amortizer, Embedder, GanPrior, IdentityOracle, TaskModel, load_stage, sha256

CLASSES = {
    "task": TaskModel,
    "prior": GanPrior,
    "amortizer": Amortizer,
    "crafter": Crafter,
    "oracle_resnet": IdentityOracle,
    "oracle_plain": IdentityOracle,
    "black_box": BlackBox,
    "embedder": Embedder,
    "embedder_plain": Embedder,
}


@pytest.fixture
def watched(monkeypatch):
    """What the trainer of the last command knew in the end."""
    seen = {}
    go = run.go

    def record(cli, loaded):
        stage = go(cli, loaded)
        seen.clear()
        seen.update({k: float(v) for k, v in stage.trainer.callback_metrics.items()})

    monkeypatch.setattr(run, "go", record)
    return seen


# Every stage


@pytest.mark.parametrize("name", STAGES)
def test_rebuilt_from_its_own_checkpoint(name, tiny):
    trained, loaded = tiny.trained[name], load_stage(tiny.ckpt(name), CLASSES[name])
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert trained.keys() == loaded.state_dict().keys()
    for key, value in trained.items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    made = outputs(loaded)
    assert all(x.std() > 0 and x.isfinite().all() for x in made)
    for mine, other in zip(made, tiny.outputs[name], strict=True):
        assert torch.equal(mine, other)
    hparams = loaded.hparams
    assert hparams.get("image_size", 32) == 32
    if name == "task":
        assert hparams["attribute_names"] == tiny.data().attribute_names
        assert loaded.feature_shape == (64, 8, 8)


@pytest.mark.parametrize("name", STAGES)
def test_evaluation_after_reload_equals_evaluation_in_fit(name, tiny, watched):
    assert main(tiny.command("validate", name)) == 0
    logged = {k: v for k, v in figures(tiny.folder / name).items() if k.startswith("val/")}
    assert logged and watched.keys() == logged.keys()
    for key, value in logged.items():
        assert watched[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("name", ["amortizer", "crafter", "black_box"])
def test_upstream_nets_are_frozen_and_elsewhere(name, tiny):
    assert tiny.touched == []
    stage = load_stage(tiny.ckpt(name), CLASSES[name])
    assert {key for key in stage.hparams if key.endswith("_ckpt")} == {f"{k}_ckpt" for k in stage.upstream}
    stage.train()
    for key, upstream in stage.upstream.items():
        assert not any(module.training for module in upstream.modules()), key
        assert not any(p.requires_grad for p in upstream.parameters()), key
        file, digest = stage.upstream_files[key]
        assert digest == sha256(file) == sha256(tiny.ckpt(key)) and file.endswith(
            f"/{key}/checkpoints/best.ckpt"
        )
    own = {"amortizer": {"net"}, "black_box": {"net"}, "crafter": {"critic", "memory", "remembered"}}[name]
    assert {entry.split(".")[0] for entry in stage.state_dict()} == own
    assert {entry.split(".")[0] for entry, _ in stage.named_parameters()} <= own
    stage.double()  # .to() and its like reach them
    assert next(stage.upstream["task"].parameters()).dtype == torch.float64
    stage.float()
    assert next(stage.upstream["task"].parameters()).dtype == torch.float32


def test_checkpoints_say_what_they_were_trained_on(tiny):
    content = torch.load(tiny.ckpt("amortizer"), weights_only=True)
    assert content["stage_class"] == "Amortizer" and content["split_hash"] == tiny.data().public_hash
    oracle = torch.load(tiny.ckpt("oracle_plain"), weights_only=True)
    assert oracle["split_hash"] == tiny.data().split_hash != tiny.data().public_hash
    digests = {key: sha256(tiny.ckpt(key)) for key in ("task", "prior")}
    assert {key: digest for key, (_, digest) in content["upstream"].items()} == digests
    for key, (file, _) in content["upstream"].items():
        assert file.endswith(f"/synthetic/{key}/checkpoints/best.ckpt")


@pytest.mark.parametrize("name", ["task", "amortizer", "oracle_plain", "black_box"])
def test_test_scores_the_audited_pictures(name, tiny, watched):
    assert main(tiny.command("test", name)) == 0
    stage, rows = load_stage(tiny.ckpt(name), CLASSES[name]), tiny.data().rows("private_test")
    images = rows["image"]
    with torch.no_grad():
        if name == "task":
            scores = stage.cloud(stage.edge(images))
            expected = mean_auc(scores, rows["attributes"])
            assert watched["test/mean_auc"] == pytest.approx(expected, abs=1e-6)
        elif name == "amortizer":
            clean = stage.upstream["task"].edge(images)
            error = (stage.render(stage(clean)) - clean).square().flatten(1).sum(1).mean()
            assert watched["test/feature_loss"] == pytest.approx(error.item(), rel=1e-4)
        elif name == "black_box":
            error = (stage.reconstruct(stage.encode(images)) - images).square().mean()
            assert watched["test/l2"] == pytest.approx(error.item(), rel=1e-4)
        else:
            people = rows["identity"].unique()
            named = people[stage.logits(images).argmax(1)]
            accuracy = (named == rows["identity"]).float().mean().item()
            assert watched["test/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("predict", "amortizer", "Amortizer"),
        ("test", "prior", "GanPrior"),
        ("test", "crafter", "Crafter"),
    ],
)
def test_verbs_that_a_stage_has_not(verb, name, words, tiny, capsys):
    assert main(tiny.command(verb, name)) == 2
    assert words in capsys.readouterr().err


# Loading


def changed(source, target, **entries):
    """A checkpoint like `source` with other entries."""
    content = torch.load(source, weights_only=True)
    content.update(entries)
    torch.save(content, target)
    return str(target)


def test_wrong_class_and_missing_file(tiny, tmp_path):
    with pytest.raises(UserError, match=r"GanPrior.*TaskModel"):
        load_stage(tiny.ckpt("prior"), TaskModel)
    with pytest.raises(UserError, match=r"absent\.ckpt.*'prior'"):
        load_stage(tmp_path / "absent.ckpt", GanPrior)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"list\.ckpt"):
        load_stage(tmp_path / "list.ckpt", GanPrior)


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "text", "pickle", "noise"])
def test_corrupt_file(damage, tiny, tmp_path):
    whole = open(tiny.ckpt("prior"), "rb").read()
    noise = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    content = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "last byte": whole[:-1],
        "text": b"hello world\n",
        "pickle": b"\x80\x02}q\x00.",
        "noise": noise.numpy().tobytes(),
    }[damage]
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.ckpt"):
        load_stage(path, GanPrior)


def test_layers_that_do_not_fit(tiny, tmp_path):
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    path = tmp_path / "x.ckpt"
    changed(tiny.ckpt("prior"), path, hyper_parameters={**content["hyper_parameters"], "width": 8})
    with pytest.raises(UserError, match=r"x\.ckpt .*'prior'"):
        load_stage(path, GanPrior)
    state = {k: v for k, v in content["state_dict"].items() if not k.startswith("critic.")}
    changed(tiny.ckpt("prior"), path, state_dict=state)
    with pytest.raises(UserError, match=r"x\.ckpt .*critic\."):
        load_stage(path, GanPrior)


def test_settings_of_another_version(tiny, tmp_path):
    hparams = torch.load(tiny.ckpt("crafter"), weights_only=True)["hyper_parameters"]
    old = {**hparams, "craft": {**hparams["craft"], "double": True}}
    path = changed(tiny.ckpt("crafter"), tmp_path / "x.ckpt", hyper_parameters=old)
    with pytest.raises(UserError, match=r"Crafter .*'double'"):
        load_stage(path, Crafter)


def test_upstream_that_has_changed(tiny, tmp_path):
    upstream = torch.load(tiny.ckpt("amortizer"), weights_only=True)["upstream"]
    other = changed(tiny.ckpt("prior"), tmp_path / "prior.ckpt", epoch=99)
    above = changed(
        tiny.ckpt("amortizer"),
        tmp_path / "a.ckpt",
        upstream={**upstream, "prior": [other, upstream["prior"][1]]},
    )
    with pytest.raises(UserError) as error:
        load_stage(above, Amortizer)
    message = str(error.value)
    assert "upstream mismatch" in message and above in message and other in message
    assert sha256(other)[:12] in message and upstream["prior"][1][:12] in message
    gone = changed(
        tiny.ckpt("amortizer"), tmp_path / "a.ckpt", upstream={**upstream, "task": ["absent.ckpt", "0" * 64]}
    )
    with pytest.raises(UserError, match=r"a\.ckpt .*absent\.ckpt"):
        load_stage(gone, Amortizer)


def test_resuming_on_another_upstream_checkpoint_is_refused(tiny, tmp_path, capsys):
    """Under another path, so that the command line's comparison of settings cannot see it."""
    fit = ["fit", "--config", tiny.command("fit", "amortizer")[2], "--runs_dir", str(tmp_path)]
    given = [f"--model.init_args.{key}={path}" for key, path in tiny.upstream("task", "prior").items()]
    assert main([*fit, *given]) == 0
    other = changed(tiny.ckpt("prior"), tmp_path / "other.ckpt", epoch=99)
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main([*fit, given[0], f"--model.init_args.prior_ckpt={other}", *more]) == 2
    message = capsys.readouterr().err
    assert "upstream mismatch" in message and other in message and tiny.ckpt("prior") in message
    copy = shutil.copy(tiny.ckpt("prior"), tmp_path / "copy.ckpt")  # the same bytes are the same prior
    assert main([*fit, given[0], f"--model.init_args.prior_ckpt={copy}", *more]) == 0


def test_sha256_notices_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * (1 << 20))
    assert sha256(path) == hashlib.sha256(b"abc" * (1 << 20)).hexdigest()
    path.write_bytes(b"abd")
    assert sha256(path) == hashlib.sha256(b"abd").hexdigest()


def test_stages_name_what_they_need(tiny):
    with pytest.raises(
        UserError,
        match=r"init_args\.prior_ckpt",
    ):
        Amortizer(task_ckpt=tiny.ckpt("task"))
    with pytest.raises(UserError, match=r"TaskModel.*GanPrior"):
        Amortizer(tiny.ckpt("task"), tiny.ckpt("task"))
    with pytest.raises(UserError, match="loss 'l3'"):
        BlackBox(tiny.ckpt("task"), loss="l3")


def test_a_prior_of_another_picture_size(tiny, tmp_path):
    stage = GanPrior(latent_dim=4, width=2, critic_width=2, image_size=64)
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    content.update(hyper_parameters=dict(stage.hparams), state_dict=stage.state_dict())
    torch.save(content, tmp_path / "large.ckpt")
    with pytest.raises(UserError, match=r"32 .*large\.ckpt .*64"):
        Amortizer(tiny.ckpt("task"), str(tmp_path / "large.ckpt"))


def test_upstream_stages_of_another_picture_size(tiny, capsys):
    """They are trained, so no config is compared; a net of convolutions would take any size."""
    for stage in ("amortizer", "black_box", "crafter"):
        more = ["--name", "large", "--data.image_size", "64"]
        assert main(tiny.command("fit", stage, *more)) == 2
        error = capsys.readouterr().err
        assert f"{tiny.ckpt('task')} (stage task)" in error
        assert "--data.image_size 32" in error
    assert load_stage(tiny.ckpt("amortizer"), Amortizer).image_size == 32
