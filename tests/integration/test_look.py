"""`look`: every face with what is rebuilt of it, what a message says, and what there is no net for."""

import base64
import html
import io
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from crafter_pl.attacks.black_box import BlackBox
from crafter_pl.cli import main
from crafter_pl.defenses import load_defense
from crafter_pl.stages import load_stage

DATA = str(Path(__file__).parents[1] / "helpers" / "conf" / "synthetic.yaml")
STAGES = ("task", "prior", "amortizer", "crafter", "black_box")


@pytest.fixture
def runs(tiny, tmp_path):
    """The tiny experiment without what other tests have trained in it."""
    home = tmp_path / "runs" / "synthetic"
    home.mkdir(parents=True)
    for stage in STAGES:
        (home / stage).symlink_to(tiny.folder / stage)
    return home.parent


@pytest.fixture(scope="module")
def others(tiny, tmp_path_factory):
    """Certified defences of two numbers of bits, and a decoder that has adapted to the first."""
    folder = tmp_path_factory.mktemp("others") / "synthetic"
    folder.mkdir()
    for stage in ("task", "prior", "black_box"):
        (folder / stage).symlink_to(tiny.folder / stage)
    place = ["--runs_dir", str(folder.parent)]

    def fit(config, name, *more):
        words = [*tiny.command("fit", config)[:3], *place, "--name", name, *more]
        assert main(words) == 0

    fit("certified", "certified")
    fit("certified", "smaller", "--model.init_args.bits", "1")
    own = ["--model.init_args.defense_ckpt", str(folder / "certified" / "checkpoints" / "best.ckpt")]
    fit("adaptive_black_box", "adapted", *own)
    return folder.parent


def go(runs, *more):
    return main(["look", "--runs_dir", str(runs), "--data", DATA, "--device", "cpu", "--count", "2", *more])


def page(runs):
    return (runs / "synthetic" / "look.html").read_text()


def pictures(text):
    """The pictures of a page by what stands for them in words."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"', text)
    return {
        html.unescape(name): to_tensor(Image.open(io.BytesIO(base64.b64decode(data)))) for name, data in found
    }


def near(seen, expected):
    return (seen - expected).abs().max() < 1 / 255  # a PNG has whole numbers


def test_the_pictures_are_what_the_decoder_draws(tiny, runs, capsys):
    assert go(runs) == 0
    text, out = page(runs), capsys.readouterr().out
    seen, faces = pictures(text), tiny.data().rows("private_test")
    people = faces["identity"].unique()[:2]
    face = torch.stack([faces["image"][faces["identity"] == person][0] for person in people])
    decoder, crafter = load_stage(tiny.ckpt("black_box"), BlackBox), load_defense(tiny.ckpt("crafter"))
    made = crafter.protect(face, torch.arange(2), crafter.options()).detach()
    with torch.no_grad():
        plain, crafted = (decoder.reconstruct(one) for one in (crafter.task.edge(face), made))
    for row in range(2):
        assert near(seen[f"person {row + 1}: The face"], face[row])
        assert near(seen[f"person {row + 1}: Unprotected"], plain[row])
        mine = seen[f"person {row + 1}: Crafter"]
        assert (mine - crafted[row]).abs().mean() < (mine - plain[row]).abs().mean()
    assert "person 3: The face" not in seen
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    for command in ("configs/certified.yaml", "adaptive_black_box"):  # neither is there
        assert command in text and command in out


def test_a_message_is_said_and_a_slider_chooses_among_settings(others):
    assert go(others) == 0
    text = page(others)
    defense = load_defense(others / "synthetic" / "certified" / "checkpoints" / "best.ckpt")
    assert text.count(f"one of {len(defense.codewords)} messages</span>") == 2
    labels = re.findall(r'<input type="radio" name="setting" value="(\d)"[^>]*><span>(\w+),', text)
    assert labels == [("0", "smaller"), ("1", "certified")], "by their bits"
    seen = pictures(text)
    assert "person 1: Certified, attacker adapting" in seen
    assert "not trained" not in text.lower() or "adapted to certified" not in text
    shown = [text.count(f'<figure data-setting="{number}"') for number in range(2)]
    assert shown == [2, 4], "two people, and of the larger one the attacker who adapts, too"


def test_photographs_are_shown_to_their_owner_alone(tiny, runs, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    face = tiny.data().rows("private_test")["image"][0]
    pixels = (face.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(folder / "<b>me&.png")
    (folder / "zebra.jpg").write_text("no picture")
    assert go(runs, str(folder), "--faces", "none") == 0
    seen, out = pictures(page(runs)), capsys.readouterr().out
    assert (seen["<b>me&.png: The face"] - face).abs().max() < 0.01
    assert "<b>me" not in page(runs) and "zebra.jpg" in out
    assert os.stat(runs / "synthetic" / "look.html").st_mode & 0o077 == 0
    (folder / "<b>me&.png").unlink()
    assert go(runs, str(folder), "--faces", "none") == 2


@pytest.mark.parametrize(("stage", "named"), [("black_box", "black_box.yaml"), ("task", "task.yaml")])
def test_without_the_nets_it_needs_it_names_the_command(runs, stage, named, capsys):
    (runs / "synthetic" / stage).unlink()
    assert go(runs) == 2
    assert named in capsys.readouterr().err and not (runs / "synthetic" / "look.html").exists()


def test_people_of_another_split_are_refused(runs, capsys):
    assert go(runs, "--data.seed", "5") == 2
    assert "--data" in capsys.readouterr().err
