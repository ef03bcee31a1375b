"""Judges: dlib's net in torch, alignment, galleries, and nets of a user's own."""

import numpy as np
import pytest
import torch
from real_data import real  # noqa: F401
from torch import nn

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import first_of_each
from crafter_pl.errors import UserError
from crafter_pl.judges import Dlib, FaceNet, GalleryJudge, Onnx, TorchProgram, embedded
from crafter_pl.judges.align import Aligner, packaged
from crafter_pl.nets.dlib import DlibNet
from crafter_pl.nets.oracle import FaceNetTrunk

dlib = pytest.importorskip("dlib")
FACES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    return DlibNet(packaged("dlib_face_recognition_resnet_model_v1.dat"))


def test_the_net_is_dlibs_own(net):
    chips = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), dtype=np.uint8)
    chips[0] = np.linspace(0, 255, 150, dtype=np.uint8)[:, None, None]
    theirs = dlib.face_recognition_model_v1(packaged("dlib_face_recognition_resnet_model_v1.dat"))
    expected = np.array([theirs.compute_face_descriptor(chip) for chip in chips])
    made = net(torch.from_numpy(chips).permute(0, 3, 1, 2) / 255)
    assert abs(made.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("content", [b"", b"\x05con_4" + bytes(100)])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "x.dat").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.dat"):
        DlibNet(tmp_path / "x.dat")
    with pytest.raises(UserError, match=r"none\.dat"):
        DlibNet(tmp_path / "none.dat")
    with pytest.raises(UserError, match="landmarks"):
        Aligner(str(tmp_path / "x.dat"), 150)


def test_drawn_faces_are_no_faces_to_it():
    judge = Dlib()
    assert len(judge.prepare("cpu", FACES)) == 1, "the report must say so"
    made = judge.embed(FACES)
    assert made.shape == (6, 128)
    assert torch.allclose(judge.similarity(made, made[:2]), -(made[:, None] - made[None, :2]).norm(dim=2))


def test_it_names_real_people_by_a_gallery(real):
    data = FacesDataModule("celeba", str(real / "celeba"), 64, private_people=20, min_private_images=20)
    data.setup("test")
    public = data.dataset("public_val")
    judge = Dlib()
    assert judge.prepare("cpu", public.take(public.index[:60])["image"]) == []
    gallery, faces = data.rows("gallery"), data.rows("private_test")
    kept = first_of_each(gallery["identity"], 8)
    made, _ = embedded(judge, gallery["image"][kept], "cpu", 40)
    known = GalleryJudge(judge, made, gallery["identity"][kept])
    names = known.identities[known.scores(judge.embed(faces["image"])).argmax(1)]
    assert (
        names == faces["identity"]
    ).float().mean() > 0.9  # of 80; 98.3 % of 400 in the run of docs/judges.md


def test_the_first_pictures_of_each_person():
    people = torch.tensor([5, 3, 5, 5, 9, 3])
    assert first_of_each(people, 1).tolist() == [0, 1, 4]
    assert first_of_each(people, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(people, 0).tolist() == list(range(6))


class Mean(nn.Module):
    """The mean colour, after what a recogniser does to pictures."""

    def forward(self, images):
        return images.mean((2, 3))


class Two(nn.Module):
    """An embedding, and something else."""

    def forward(self, images):
        return images.mean((2, 3)), images


def program(folder):
    torch.export.save(torch.export.export(Mean(), (torch.rand(6, 3, 8, 8),)), folder / "net.pt2")
    return folder / "net.pt2"


def script(folder):
    torch.jit.script(Mean()).save(folder / "net.pt")
    return folder / "net.pt"


def graph(folder):
    torch.onnx.export(Mean(), (torch.rand(1, 3, 8, 8),), folder / "net.onnx", dynamo=True)
    return folder / "net.onnx"


@pytest.mark.parametrize(("kind", "make"), [(TorchProgram, script), (Onnx, graph)])
def test_a_net_of_ones_own(tmp_path, kind, make):
    options = {"size": 8, "mean": [0.1, 0.2, 0.3], "std": 0.5, "channels": "bgr", "align": False}
    judge = kind(str(make(tmp_path)), **options, threshold=0.4)
    assert judge.prepare("cpu", FACES) == []
    small = FACES[:, :, :8, :8]
    expected = (small.mean((2, 3)).flip(1) - torch.tensor([0.1, 0.2, 0.3])) / 0.5
    assert torch.allclose(judge.embed(small), expected, atol=1e-5)
    assert judge.settings()["channels"] == "bgr" and judge.threshold == 0.4


def test_a_program_has_the_batch_that_it_was_saved_with(tmp_path):
    judge = TorchProgram(str(program(tmp_path)), size=8, align=False)
    with pytest.raises(UserError, match=r"net\.pt2"):
        judge.prepare("cpu", FACES)


def test_a_net_that_gives_several_things(tmp_path):
    torch.jit.script(Two()).save(tmp_path / "net.pt")
    judge = TorchProgram(str(tmp_path / "net.pt"), size=8, align=False)
    assert judge.prepare("cpu", FACES) == [] and judge.embed(FACES).shape == (6, 3)


def test_what_alignment_hangs_on_is_in_the_settings(tmp_path):
    script(tmp_path)
    made = []
    for padding in (0.1, 0.6):
        judge = TorchProgram(str(tmp_path / "net.pt"), size=8, padding=padding)
        judge.prepare("cpu", FACES)
        made.append((judge.settings(), embedded(judge, FACES, "cpu", 4, tmp_path)[1]))
    assert made[0][0] != made[1][0] and made[0][1] != made[1][1], "other embeddings in another file"
    assert {"frame", "landmarks_sha256"} <= made[0][0].keys()


@pytest.mark.parametrize("kind", [TorchProgram, Onnx])
def test_a_net_that_is_none_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="no file"):
        kind(str(tmp_path / "none"), align=False).prepare("cpu", FACES)
    (tmp_path / "net.pt2").write_bytes(b"no net")
    with pytest.raises(UserError, match="cannot be used"):
        kind(str(tmp_path / "net.pt2"), align=False).prepare("cpu", FACES)


def test_facenet_by_a_file(tmp_path):
    torch.manual_seed(0)
    torch.save(FaceNetTrunk(None).net.state_dict(), tmp_path / "net.pt")
    judge = FaceNet(str(tmp_path / "net.pt"))
    judge.prepare("cpu", FACES)
    assert judge.embed(FACES).norm(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    with pytest.raises(UserError, match=r"none\.pt"):
        FaceNet(str(tmp_path / "none.pt")).prepare("cpu", FACES)


def test_embeddings_are_kept(tmp_path):
    class Counted(TorchProgram):
        calls = 0

        def embed(self, images):
            Counted.calls += 1
            return super().embed(images)

    judge = Counted(str(script(tmp_path)), size=8, align=False)
    judge.prepare("cpu", FACES)
    before = Counted.calls
    made, file = embedded(judge, FACES, "cpu", 4, tmp_path)
    again, _ = embedded(judge, FACES, "cpu", 4, tmp_path)
    assert torch.equal(made, again) and Counted.calls == before + 2
    file.write_bytes(b"damaged")
    assert torch.equal(embedded(judge, FACES, "cpu", 4, tmp_path)[0], made)
    assert embedded(judge, FACES.flip(0), "cpu", 4, tmp_path)[1] != file
