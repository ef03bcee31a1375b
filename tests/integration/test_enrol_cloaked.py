"""Enrolled with cloaked pictures, shown clean ones: the cloaks' own experiment."""

import shutil

import torch
import yaml
from enrol_cloaked import main, named
from experiment import DATA
from torch.nn.functional import normalize

from crafter_pl.stages import Embedder, load_stage


class Colours:
    """Embeds a picture by its mean colour."""

    def embed(self, images):
        return normalize(images.mean((2, 3)))


def test_who_was_enrolled_under_another_face_is_not_named():
    """Two pictures each of a red, a green and a blue person; then red and green are swapped."""
    clean = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4).repeat_interleave(2, 0)
    rows = {"image": clean, "identity": torch.tensor([70, 70, 5, 5, 9, 9])}
    swapped = clean[[2, 3, 0, 1, 4, 5]]
    for alone in (True, False):
        assert named(Colours(), clean, rows, rows, alone).tolist() == [1] * 6
        one_of_two = torch.cat([swapped[:1], clean[1:]])  # a person's centroid is over all pictures
        assert named(Colours(), one_of_two + 0.1 * clean, rows, rows, alone).tolist() == [1] * 6
    assert named(Colours(), swapped, rows, rows, alone=False).tolist() == [0, 0, 0, 0, 1, 1]
    grey = swapped + 0.9 * clean  # a cloak that goes halfway: enough for two who take each other's place
    assert named(Colours(), grey, rows, rows, alone=False).tolist() == [0, 0, 0, 0, 1, 1]
    assert named(Colours(), grey, rows, rows, alone=True).tolist() == [1] * 6


def test_the_table_is_of_the_cloaks_that_are_asked_for(tiny, tmp_path, capsys):
    runs = tmp_path / "runs"
    for stage in ("embedder", "embedder_plain"):
        shutil.copytree(tiny.folder / stage, runs / "synthetic" / stage)
    strong = {"rho": 0.5, "steps": 20, "lr": 0.1, "embedder_ckpt": tiny.ckpt("embedder")}
    tiny.trainer("fawkes", runs)("strong", **strong)
    tiny.trainer("fawkes", runs)("weak", **strong | {"rho": 1e-9})
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(DATA))
    capsys.readouterr()
    command = ["--data", str(data), "--runs_dir", str(runs)]
    assert main([*command, "--cloaks", "[weak, strong]"]) == 0
    printed = capsys.readouterr().out.splitlines()  # on a slow machine also how long it will take
    head, _, uncloaked, *lines = [line for line in printed if line.startswith("|")]
    assert [line.split(" | ")[0] for line in lines] == [
        f"| {name}, {who}" for name in ("weak", "strong") for who in ("one person", "everybody")
    ]
    rest = [line.partition(" | ")[2] for line in lines]
    assert head == "| enrolled with | embedder | embedder_plain |"
    rows = tiny.data().rows("private_test"), tiny.data().rows("private_train")
    net = load_stage(tiny.ckpt("embedder"), Embedder)
    rate = float(named(net, rows[0]["image"], *rows, alone=False).mean())
    assert uncloaked.startswith(f"| uncloaked | {100 * rate:.1f} % (")
    plain = uncloaked.partition(" | ")[2]
    assert rest[0] == rest[1] == plain, "no budget, no cloak"
    assert plain not in rest[2:]
    assert main([*command, "--cloaks", "[embedder]"]) == 2
    assert "Embedder" in capsys.readouterr().err
