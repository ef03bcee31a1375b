"""Attackers without pictures: the student, its teacher, adaptation, and what an audit makes of them."""

import json

import pytest
import torch
from experiment import in_subprocess
from rounds import TWO, same
from torch import nn

from crafter_pl.attacks import GalleryLDA, Link, WatchList
from crafter_pl.attacks.reader import Gallery
from crafter_pl.attacks.student import AdaptiveStudent, Student, rank1
from crafter_pl.audit.load import Published
from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest
from crafter_pl.errors import UserError
from crafter_pl.stages import load_stage
from crafter_pl.stages.checkpoints import read_checkpoint

READERS = [
    {"class_path": "GalleryLDA"},
    {"class_path": "GalleryLDA", "init_args": {"reads": "answers"}},
    {"class_path": "WatchList"},
    {"class_path": "Link"},
    {"class_path": "LinkLDA"},
]


class Mean(nn.Module):
    """A recogniser that sees the mean colour."""

    def forward(self, images):
        return images.mean((2, 3))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Options of a student whose teacher is that recogniser."""
    file = tmp_path_factory.mktemp("teacher") / "net.pt2"
    batch = {"images": {0: torch.export.Dim.AUTO}}
    torch.export.save(torch.export.export(Mean(), (torch.rand(4, 3, 8, 8),), dynamic_shapes=batch), file)
    about = {"path": str(file), "size": 8, "align": False}
    return ["--model.init_args.teacher", "TorchProgram", "--model.init_args.teacher_args", json.dumps(about)]


@pytest.fixture(scope="module")
def students(tiny, taught):
    """A student, and one that has adapted to Crafter."""
    assert main([*tiny.command("fit", "student"), *taught]) == 0
    assert main(tiny.command("fit", "adaptive_student")) == 0
    return tiny


@pytest.fixture(scope="module")
def report(students, taught, tiny_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    more = ["--attacks", "[{class_path: DecoderAttack}]", "--rulers", json.dumps(READERS), "--out", str(out)]
    judge = {"class_path": "TorchProgram", "init_args": {**json.loads(taught[-1]), "name": "colour"}}
    more += ["--recognisers", json.dumps([judge]), "--drawn_images", "2", "--gallery_images", "2"]
    assert main(students.audit(*more)) == 0
    kept = {file.suffix for file in (out / "cache").iterdir()}
    assert ".embedded" in kept
    return json.loads((out / "report.json").read_text())


def test_the_student_starts_from_the_clouds_classifier(students, taught):
    stage = load_stage(students.ckpt("student"), Student)
    assert stage.net.embed(torch.rand(2, *stage.task.feature_shape)).shape == (2, 3)
    data = students.data()
    public = data.dataset("public_train")
    assert stage.hparams["identities"] == public.faces.identity[public.index].unique().tolist()
    assert stage.teacher().checkpoint in taught[-1], "a checkpoint knows its teacher"
    kept = list((students.folder / "embeddings").glob("*.embedded"))
    assert len(kept) == 2, "of all public faces, and of the mirrored ones"


def test_adaptation_goes_on_from_the_student(students):
    first = load_stage(students.folder / "adaptive_student/checkpoints/round-00.ckpt", AdaptiveStudent)
    last = load_stage(students.ckpt("adaptive_student"), AdaptiveStudent)
    plain = load_stage(students.ckpt("student"), Student)
    assert same(first.net.state_dict(), plain.net.state_dict())
    assert not same(last.net.state_dict(), plain.net.state_dict())
    said = read_checkpoint(students.ckpt("adaptive_student"))["adaptation"]
    assert said["pairs"] == 16 and said["defense"] == "crafter"


def test_an_audit_reads_without_pictures(report, students):
    plain, crafted = report["defenses"]
    for entry in (plain, crafted):
        readers = entry["rulers"]
        for name in ("gallery_lda", "gallery_lda_answers", "watch_list"):
            assert {"top1", "top5", "tar", "tar_strict", "learnt", "suspects"} <= readers[name].keys()
            assert readers[name]["suspects"] and readers[name]["learnt"]
        for name in ("link", "link_lda"):
            assert "top1" not in readers[name] and 0 <= readers[name]["eer"]["value"] <= 1
        best = max(readers[name]["top1"]["value"] for name in list(readers)[:3])
        worst = entry["worst_case_gallery"]
        assert worst["eval_acc"]["value"] >= best and 0 < worst["chance"] < 1
    assert crafted["rulers"]["watch_list"]["checkpoints"].keys() == {"adaptive_student"}
    data, galleries = students.data(), list(students.folder.glob("queries/*/gallery"))
    assert galleries and all(read_manifest(one)["count"] >= len(data.private_identities) for one in galleries)
    private = set(data.dataset("gallery").index.tolist())
    assert private.isdisjoint(data.dataset("private_test").index.tolist())


def test_a_recogniser_judges_beside_the_oracles(report):
    first, *oracles = report["oracles"]
    assert first["name"] == "colour" and first["seen"] is False and all(one["seen"] for one in oracles)
    assert first["settings"]["gallery"] == 2 * first["people"]
    for entry in report["defenses"]:
        result = entry["attacks"]["black_box"]
        assert result["eval_acc"] == result["by_oracle"]["colour"], "the first judge gives Eval Acc"
        assert result["galleries"].keys() == {"colour"} and {*result["galleries"].values()} <= {
            "originals",
            "drawn",
        }
        assert result["tar_0.1_by_oracle"].keys() == {"colour", *(one["name"] for one in oracles)}
        assert "accepted" not in result, "it has no threshold"
    assert "The strongest judge" in report["verdict"] and "other pictures" in report["verdict"]


def test_what_has_not_adapted_says_how(students, tiny_store):
    target, _ = Published(students.folder, "cpu").target(str(tiny_store), read_manifest(tiny_store))
    for reader in (WatchList("student.ckpt"), Link()):
        with pytest.raises(UserError, match=r"adaptive_student|student\.ckpt"):
            reader.against(target, students.commands, [])


def test_the_list_is_of_pictures_of_features_or_both(students):
    features = torch.rand(6, *load_stage(students.ckpt("student"), Student).task.feature_shape)
    gallery = Gallery(torch.rand(6, 3, 16, 16), torch.tensor([4, 4, 2, 2, 9, 9]), features)
    found = {}
    for match in ("pictures", "features", "both"):
        reader = WatchList(match=match).against(None, students.commands)
        reader.prepare("cpu")
        reader.enrol(gallery)
        found[match] = reader.identify(features)
        assert reader.identities.tolist() == [2, 4, 9] and reader.settings() == {"match": match}
    standard = [(one - one.mean(1, True)) / one.std(1, keepdim=True) for one in list(found.values())[:2]]
    assert torch.allclose(found["both"], sum(standard), atol=1e-5)
    assert WatchList("x").name == "watch_list" and GalleryLDA.suspects and not Link.suspects


def test_rank_one_among_the_others_means():
    embeddings = torch.eye(3).repeat_interleave(2, 0)
    identity = torch.tensor([7, 7, 1, 1, 5, 5])
    assert rank1(embeddings, identity) == 1.0
    assert rank1(embeddings.roll(1, 0), identity) == 0.0
    assert rank1(torch.eye(2), torch.tensor([1, 2])) == 0.0, "nobody has two pictures"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model.init_args.teacher", "Nobody"], "Nobody"),
        (["--model.init_args.embedding", "5"], "embedding 3"),
    ],
)
def test_a_teacher_that_does_not_fit(tiny, taught, capsys, tmp_path, more, said):
    command = [
        *tiny.command("fit", "student"),
        *taught,
        *more,
        "--name",
        "wrong",
        "--runs_dir",
        str(tmp_path),
    ]
    assert main([*command, "--model.init_args.task_ckpt", tiny.ckpt("task")]) == 2
    assert said in capsys.readouterr().err


def test_two_processes_share_the_teachers_look(tiny, taught):
    made = in_subprocess([*tiny.command("fit", "student"), *taught, "--name", "student-two", *TWO])
    assert made.returncode == 0, made.stderr
    assert load_stage(tiny.ckpt("student-two"), Student).hparams["embedding"] == 3
