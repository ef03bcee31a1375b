"""Certified crafting on a device: what leaves about a person is charged before it leaves."""

import json
from dataclasses import replace

import pytest
import torch
from certified_lab import faces, stage, trained  # noqa: F401 (fixtures)
from PIL import Image

from crafter_pl.certificate import Certificate
from crafter_pl.cli import main
from crafter_pl.data.store import read_store
from crafter_pl.defenses import load_defense
from crafter_pl.edge.accountant import Accountant, account_file
from crafter_pl.edge.protector import Protector
from crafter_pl.errors import UserError
from crafter_pl.files import read_json


@pytest.fixture
def protector(trained, tmp_path):
    file = tmp_path / "account.json"
    return Protector.load(trained, device="cpu", faces="none", account=file, budget=7, person="Ann")


def test_messages_are_charged_before_they_leave(protector, faces, capsys):
    bits = protector.defense.certificate(protector.options).bits
    account, image = protector.accountant, faces["image"][0]
    first = protector.protect(image)
    assert account.spent() == {"Ann": pytest.approx(bits)}
    again = [protector.protect(image) for _ in range(5)]
    assert account.spent() == {"Ann": pytest.approx(bits)}, "the same picture costs nothing"
    read = protector.defense.read(torch.cat([first, *again]), protector.options)
    assert len(read.unique()) == 1, "and has the same message"
    protector.options = replace(protector.options, epsilon=0.1)
    for image in faces["image"][1:4]:
        protector.protect(image)
    spent = account.spent()["Ann"]
    assert bits < spent <= 7, "randomised response costs less"
    protector.options = protector.defense.options(epsilon=0.1)  # keyed coins are not taken, whatever it says
    one, two = (Protector.craft(protector, (faces["image"][1:2] * 255).byte(), torch.zeros(1)) for _ in "12")
    assert torch.equal(
        protector.defense.read(one, protector.options), protector.defense.read(two, protector.options)
    )
    with pytest.raises(UserError, match="exceed the budget of 7"):
        protector.craft((faces["image"] * 255).byte(), torch.arange(len(faces["image"])))
    assert account.spent() == {"Ann": spent}


def test_one_account_whatever_the_working_directory(protector, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos" / "ann")
    assert Accountant("~/account.json").file == tmp_path / "account.json"
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert account_file() == tmp_path / ".local" / "state" / "crafter_pl" / "account.json"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert account_file() == tmp_path / "state" / "crafter_pl" / "account.json"
    protector.people = "folders"
    assert [protector.whose(one) for one in ("1.png", "../bob/1.png", "./1.png")] == ["ann", "bob", "ann"]
    with pytest.raises(UserError, match="give a name"):
        Protector.load(trained, device="cpu", faces="none", account=tmp_path / "account.json", person="")


def test_without_an_account_nothing_is_sent(stage, faces):
    from crafter_pl.data.framing import OFFICIAL
    from crafter_pl.edge.faces import Finder

    bare = Protector(stage, Finder("none", 0.9, 8, 0.0, OFFICIAL, "cpu"))
    with pytest.raises(UserError, match="without an account"):
        bare.craft((faces["image"][:1] * 255).byte(), torch.zeros(1, dtype=torch.int64))


@pytest.fixture
def photographs(tiny, tmp_path, faces):
    """Six photographs in two folders, and `protect` on them."""
    for number, image in enumerate(faces["image"][:6]):
        file = tmp_path / "photos" / ("ann" if number < 4 else "bob") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(file)
    command = ["protect", str(tmp_path / "photos"), "--out", str(tmp_path / "store"), "--faces", "none"]
    command += ["--runs_dir", str(tiny.runs_dir), "--account", str(tmp_path / "account.json")]
    return [*command, "--batch_size", "2", "--device", "cpu"]


def test_protect_refuses_beyond_the_budget_and_goes_on_with_more(trained, tmp_path, photographs, capsys):
    assert main([*photographs, "--budget", "5"]) == 2
    said = capsys.readouterr()
    assert "Smiling, Eyeglasses" in said.out and "bits more" not in said.out
    assert all(part in said.err for part in ("--person NAME", "--people folders", "--budget", "13.3"))
    assert not list((tmp_path / "store").glob("shard*")), "all are counted before one is charged"
    assert Accountant(tmp_path / "account.json").spent() == {}
    assert main([*photographs, "--budget", "50"]) == 0
    features, _, manifest = read_store(tmp_path / "store")
    defense = load_defense(trained)
    options = defense.options(draws="system")
    assert len(defense.read(features, options)) == 6 and manifest["settings"]["draws"] == "system"
    assert "cost" not in manifest, "what it took says something of the pictures"
    bits = defense.certificate(options).bits
    assert Accountant(tmp_path / "account.json").spent() == {"owner": pytest.approx(6 * bits)}
    said = capsys.readouterr().out
    assert f"{6 * bits:g} bits more about owner" in said and "0 of 50 bits about owner" in said
    assert f"{Certificate(6 * bits).naming(10_000):.2%}" in said, "what the proof says of all of them"


def test_a_folder_without_a_name_is_nobody(trained, tmp_path, photographs, capsys):
    folder = next(tmp_path.rglob("ann"))
    folder.rename(folder.with_name("  "))
    assert main([*photographs, "--people", "folders"]) == 2
    error = capsys.readouterr().err
    assert str(folder.with_name("  ")) in error and "--person" not in error


def test_each_folder_may_be_a_person(trained, tmp_path, photographs, capsys):
    bits = load_defense(trained).certificate(load_defense(trained).options()).bits
    assert main([*photographs, "--people", "folders", "--person", "Ann"]) == 2
    assert "--person and --people" in capsys.readouterr().err
    assert main([*photographs, "--people", "folders", "--budget", f"{3 * bits}"]) == 2
    assert "about ann 0 bits" in capsys.readouterr().err, "no person exceeds the budget"
    assert Accountant(tmp_path / "account.json").spent() == {}
    assert main([*photographs, "--people", "folders", "--budget", f"{4 * bits}"]) == 0
    spent = Accountant(tmp_path / "account.json").spent()
    assert spent == {"ann": pytest.approx(4 * bits), "bob": pytest.approx(2 * bits)}
    assert "about ann, about whom most leaves" in capsys.readouterr().out
    files = [json.dumps(read_json(file, "")) for file in (tmp_path / "store").glob("*.json")]
    assert files and not any("ann" in text for text in files), "whose they are stays on the device"
