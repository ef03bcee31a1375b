"""The audit on small fakes whose every figure is known, its checks, its cache and an interrupted run."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from audit_lab import (
    IDENTITIES,
    PEOPLE,
    PICTURES,
    SIZE,
    Blank,
    Echo,
    FakeData,
    FakeOracle,
    make_lab,
    write_store,
)
from safetensors.torch import load_file, save_file

from crafter_pl.errors import UserError


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return make_lab(tmp_path, monkeypatch)


def test_every_figure_of_a_known_audit(lab: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    report = lab.run()
    none, strong, weak = report["defenses"]
    assert (none["name"], strong["beta"], weak["beta"]) == ("none", 1.0, 2.0), (
        "unprotected first, then by beta"
    )
    colour, turned = report["oracles"]
    assert colour["accuracy_on_originals"] == 1.0 and turned["accuracy_on_originals"] == 0.0
    assert report["panel"]["accuracy_on_originals"]["value"] == 1.0
    assert report["data"]["chance"] == pytest.approx(1 / PEOPLE) and report["data"]["images"] == 18
    echo = none["attacks"]["echo"]
    assert echo["eval_acc"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert echo["by_oracle"]["turned"]["value"] == 0.0 and echo["panel_any"]["value"] == 1.0
    assert echo["top5_by_oracle"]["colour"]["value"] == 1.0 and echo["panel_any_top5"]["value"] == 1.0
    assert echo["ssim"]["value"] == pytest.approx(1) and echo["psnr"]["value"] == 100.0
    assert echo["identity_similarity"]["value"] == pytest.approx(1)
    blank = none["attacks"]["blank"]
    assert blank["eval_acc"]["value"] == pytest.approx(1 / PEOPLE)
    assert blank["psnr"]["value"] < 40
    assert weak["attacks"]["echo"]["eval_acc"]["value"] == pytest.approx(0.5)
    assert strong["attacks"]["echo"]["eval_acc"]["value"] == 0.0
    assert none["worst_case"]["eval_acc"]["value"] == 1.0
    assert none["utility"]["per_attribute"]["reddish"]["value"] == 1.0
    assert report["data"]["attributes_left_out"] == ["always"]
    assert weak["cost"] == {"seconds_per_image": 0.5, "peak_memory_mb": 70.0}
    assert weak["change"]["worst_case_eval_acc"]["value"] == pytest.approx(
        weak["worst_case"]["eval_acc"]["value"] - 1.0
    )
    assert [curve["betas"] for curve in report["curves"]] == [[1.0, 2.0]]
    shown = capsys.readouterr().out
    assert (
        "worst case" in shown
        and "colour 100.0 %, turned 0.0 %" in shown
        and str(lab.out / "report.html") in shown
    )
    assert "turned names only 0.0 %" in shown
    assert list(lab.out.glob("events.out.tfevents.*"))


def test_the_worst_case_is_any_attack_and_any_oracle_and_has_its_own_chance(lab: SimpleNamespace) -> None:
    none = lab.run()["defenses"][0]
    # Guesses a picture: the person (colour, echo), the next one (turned, echo), and two fixed ones (blank).
    data = lab.data.all
    label = torch.searchsorted(torch.tensor(sorted(IDENTITIES)), data["identity"])
    colour, turned = lab.stages["colour"], lab.stages["turned"]
    blank = Blank().reconstruct(data["image"])
    others = 0
    for row, own in enumerate(label.tolist()):
        guesses = set()
        for images in (data["image"], blank):
            for oracle in (colour, turned):
                guesses.add(PEOPLE - 1 - int(oracle.scores(oracle.embed(images[row : row + 1])).argmax()))
        others += len(guesses - {own})
    assert none["worst_case"]["chance"] == pytest.approx(others / len(label) / (PEOPLE - 1))
    assert none["worst_case"]["chance"] > 1 / PEOPLE


def test_an_attack_is_handed_features_alone_in_an_order_that_says_nothing(lab: SimpleNamespace) -> None:
    attack = Echo()
    lab.run(attacks=[attack], features=[])
    handed = torch.cat(attack.seen)
    images = lab.data.all["image"]
    assert not torch.equal(handed, images)
    distance = (handed[:, None] - images[None]).abs().amax((2, 3, 4))
    rows = distance.argmin(1)
    assert distance.amin(1).max() == 0 and sorted(rows.tolist()) == list(range(len(images)))
    person = lab.data.all["identity"][rows]
    assert int((person[1:] == person[:-1]).sum()) < PEOPLE * (PICTURES - 1) / 2


def test_reconstructions_are_made_once(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab.run(attacks=[Echo()])
    again = Echo()
    second = lab.run(attacks=[again], overwrite=True)
    assert again.seen == [] and again.prepared == []
    with monkeypatch.context() as patch:
        patch.setattr(Echo, "version", 2)
        lab.run(attacks=[again], overwrite=True)
    assert len(torch.cat(again.seen)) == 3 * len(lab.data.all["image"])
    again.seen.clear()
    lab.run(attacks=[Echo()], overwrite=True)
    assert first["defenses"] == second["defenses"]
    other = Echo(noise=0.01)
    lab.run(attacks=[other], overwrite=True)
    assert len(other.seen) == 3 * 4 and len(other.prepared) >= 3, "other settings: everything anew"
    write_store(lab.tmp / "b2", lab.data, lab.half * 0.9, 2.0)
    changed = Echo(noise=0.01)
    lab.run(attacks=[changed], overwrite=True)
    assert len(changed.seen) == 4, "one store has changed: that one alone"
    assert len(list((lab.out / "cache").iterdir())) == 3, "what is not used any more is gone"


def test_a_log_shows_no_bar(lab: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    lab.run(attacks=[Echo()])
    shown = capfd.readouterr()
    assert "\r" not in shown.out + shown.err and "%|" not in shown.err


def test_two_audits_in_one_folder(lab: SimpleNamespace) -> None:
    """The one that ends first would remove reconstructions that the other needs."""
    lab.out.mkdir(parents=True)
    with open(lab.out / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="--out"):
            lab.run(attacks=[Echo()])
    lab.run(attacks=[Echo()])


def test_an_interrupted_audit_goes_on_and_ends_as_if_nothing_had_happened(lab: SimpleNamespace) -> None:
    whole = lab.run(attacks=[Echo(noise=0.3)])
    files = sorted((lab.out / "cache").rglob("*.safetensors"))
    pictures = [load_file(path)["images"] for path in files]
    shutil.rmtree(lab.out / "cache")
    (lab.out / "report.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        lab.run(attacks=[Echo(noise=0.3, stop_after=6)])
    assert not (lab.out / "report.json").exists()
    rest = Echo(noise=0.3)
    resumed = lab.run(attacks=[rest])
    assert len(rest.seen) == 12 - 6
    assert resumed["defenses"] == whole["defenses"]
    assert len(files) == 12 and sorted((lab.out / "cache").rglob("*.safetensors")) == files
    assert all(torch.equal(load_file(path)["images"], was) for path, was in zip(files, pictures, strict=True))


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_batch_is_made_again_alone(lab: SimpleNamespace, damage: str) -> None:
    first = lab.run(attacks=[Echo()])
    (lab.out / "cache" / "of-an-earlier-version.safetensors").touch()
    path = max((lab.out / "cache").rglob("00001.safetensors"))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:100])
    elif damage == "gone":
        path.unlink()
    else:
        save_file({"images": torch.zeros(5, 3, 2, 2)}, path)
    again = Echo()
    assert lab.run(attacks=[again], overwrite=True)["defenses"] == first["defenses"]
    assert len(again.seen) == 1 and path.read_bytes() == content
    assert all(folder.is_dir() for folder in (lab.out / "cache").iterdir())


def test_a_report_is_not_replaced_unasked(lab: SimpleNamespace) -> None:
    lab.run(features=[])
    with pytest.raises(UserError, match="--overwrite true"):
        lab.run(features=[])


def test_stores_of_one_beta_are_told_apart_by_what_differs(lab: SimpleNamespace) -> None:
    images = lab.data.all["image"]
    third = write_store(lab.tmp / "c", lab.data, images, 2.0, settings={"beta": 2.0, "steps": 9})
    labels = [entry["label"] for entry in lab.run(features=[*lab.base["features"], third])["defenses"]]
    assert labels == [
        "none",
        "crafter (beta 1, steps 5)",
        "crafter (beta 2, steps 5)",
        "crafter (beta 2, steps 9)",
    ]
    with pytest.raises(UserError, match="the same"):
        lab.run(features=[third, third], overwrite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": []}, "--attacks"),
        ({"attacks": [Echo(), Echo()]}, "two attacks have one name"),
        ({"oracles": []}, "--oracles"),
        ({"bootstrap": 0}, "at least 1"),
    ],
)
def test_arguments_are_checked_first(lab: SimpleNamespace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lab.run(**changes)
    assert not lab.out.exists()


def test_stores_and_stages_that_do_not_fit_are_refused(lab: SimpleNamespace) -> None:
    images = lab.data.all["image"]
    other = write_store(lab.tmp / "other", lab.data, images, 1.0, encoder_sha256="a" * 64)
    with pytest.raises(UserError, match="encoder"):
        lab.run(features=[other])
    public = write_store(lab.tmp / "public", lab.data, images, 1.0, split="public_val")
    with pytest.raises(UserError, match="private_test"):
        lab.run(features=[public])
    few = write_store(lab.tmp / "few", lab.data, images[:12], 1.0)
    with pytest.raises(UserError, match="6 of these"):
        lab.run(features=[few])
    lab.stages["strange"] = FakeOracle("strange", identities=[1, 2, 3])
    with pytest.raises(UserError, match="other people"):
        lab.run(oracles=["colour", "strange"])
    with pytest.raises(UserError, match=r"colour.*colour"):
        lab.run(oracles=["colour", "turned", "colour"])
    lab.stages["turned"].hparams["image_size"] = 64
    with pytest.raises(UserError, match=r"turned .*64 pixels"):
        lab.run()
    lab.splits["colour"] = "another"
    with pytest.raises(UserError, match="another split"):
        lab.run()
    lab.splits.clear()
    lab.stages["task"].hparams = {"attribute_names": ["hat"], "image_size": SIZE}
    with pytest.raises(UserError, match="knows the attributes hat"):
        lab.run()
    lab.stages["task"].hparams = {"attribute_names": list(FakeData.attribute_names), "image_size": 64}
    with pytest.raises(UserError, match="of 64 pixels"):
        lab.run()


def test_an_attack_with_a_missing_checkpoint_names_it(lab: SimpleNamespace) -> None:
    attack = Echo()
    attack.checkpoints = {"prior": None}
    with pytest.raises(UserError, match=r"e/prior/.*best\.ckpt"):
        lab.run(attacks=[attack])


def test_an_attack_that_learnt_elsewhere_is_noted(lab: SimpleNamespace) -> None:
    lab.splits["decoder"] = "another"
    (lab.tmp / "decoder").touch()
    attack = Echo()
    attack.checkpoints = {"decoder": str(lab.tmp / "decoder")}
    attack.describe = lambda: {"name": "echo"}
    report = lab.run(attacks=[attack])
    assert any("decoder" in warning for warning in report["warnings"])


def test_one_oracle_is_warned_about_and_equal_names_are_numbered(lab: SimpleNamespace) -> None:
    assert any("Only one judge" in warning for warning in lab.run(oracles=["colour"])["warnings"])
    lab.stages["again"] = FakeOracle("colour")
    report = lab.run(oracles=["colour", "again"], overwrite=True)
    assert [oracle["name"] for oracle in report["oracles"]] == ["colour", "colour 2"]
    assert any("same architecture" in warning for warning in report["warnings"])
    lab.stages["again"].hparams["grey"] = True
    report = lab.run(oracles=["colour", "again"], overwrite=True)
    assert not any("same architecture" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("broken", "message"),
    [(lambda f: f[:, :, :4], "expected"), (lambda f: f + 2, "outside"), (lambda f: f / 0, "outside")],
)
def test_an_attack_that_breaks_its_contract_is_refused(
    lab: SimpleNamespace, broken: Any, message: str
) -> None:
    attack = Echo()
    attack.reconstruct = broken
    with pytest.raises(ValueError, match=message):
        lab.run(attacks=[attack])
