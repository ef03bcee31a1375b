import os
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_lab import _loaded_once, ledger_of  # noqa: F401
from PIL import Image
from torchvision.transforms.functional import to_tensor

from crafter_pl.cli import main
from crafter_pl.data.framing import OFFICIAL, Frame, measure_frame
from crafter_pl.edge.faces import Finder, Place
from crafter_pl.edge.photos import Refused
from crafter_pl.edge.protector import Protector
from crafter_pl.errors import UserError

# Real faces


@pytest.fixture
def real():
    root = Path(os.environ.get("CRAFTER_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / "celeba_aligned_sample").is_dir():
        pytest.skip(f"no real pictures in {root}: set CRAFTER_DATA")
    return sorted((root / "celeba_aligned_sample" / "img_align_celeba").iterdir())


@pytest.mark.data
def test_faces_are_cut_as_in_training(real):
    """MTCNN's squares against the data module's crop of CelebA: side 128 about (89, 119)."""
    finder = Finder()
    shares = []
    for file in real[:25]:
        (place,) = finder.find(Image.open(file).convert("RGB"))
        assert abs(place.angle) < 8
        half = place.side / 2
        wide = min(place.x + half, 153) - max(place.x - half, 25)
        high = min(place.y + half, 183) - max(place.y - half, 55)
        shares.append(wide * high / (place.side**2 + 128**2 - wide * high))
    assert np.mean(shares) > 0.9 and min(shares) > 0.7
    wider = Finder(margin=0.1).find(Image.open(real[0]).convert("RGB"))[0]
    assert wider.side == pytest.approx(1.2 * finder.find(Image.open(real[0]).convert("RGB"))[0].side)


@pytest.mark.data
def test_faces_are_cut_as_the_encoders_training_pictures_are(real):
    """What `measure_frame` says of differently cut pictures leads the finder to their squares."""
    photos = [Image.open(file).convert("RGB") for file in real[:30]]
    for half in (64, 75):  # CelebA's official crop, and a wider one
        crops = [
            photo.crop((89 - half, 119 - half, 89 + half, 119 + half)).resize((64, 64)) for photo in photos
        ]
        frame = measure_frame(torch.stack([to_tensor(crop) for crop in crops]))
        assert half > 64 or np.abs(np.subtract(frame, OFFICIAL)).max() < 0.012
        found = [Finder(frame=frame).find(photo)[0] for photo in photos]
        assert np.median([place.side for place in found]) == pytest.approx(2 * half, rel=0.03)
        assert np.median([place.y for place in found]) == pytest.approx(119, abs=3)


def test_a_box_alone_is_cut_in_proportion():
    """Where the points make no sense, the square is CelebA's, wider for pictures that are cut more widely."""
    box, points = np.array([10.0, 10, 70, 90]), np.zeros((5, 2))
    official, wide = (Finder("none", frame=Frame(*(figure / by for figure in OFFICIAL))) for by in (1, 1.5))
    assert wide._place(box, points).side == pytest.approx(1.5 * official._place(box, points).side)


@pytest.mark.data
def test_turned_faces_are_straightened(real):
    for file in real[:5]:
        wide = Image.new("RGB", (400, 400), (120, 120, 120))
        wide.paste(Image.open(file), (111, 91))
        (straight,) = Finder().find(wide)
        (turned,) = Finder().find(wide.rotate(-20, Image.Resampling.BICUBIC))
        assert turned.angle - straight.angle == pytest.approx(20, abs=6)


@pytest.mark.data
def test_photographs_of_real_faces(real, tiny, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    group = Image.new("RGB", (2600, 1200), (110, 120, 130))
    for number, scale in enumerate((2.0, 4.0)):  # the larger one comes second
        face = Image.open(real[number]).convert("RGB")
        size = (round(face.width * scale), round(face.height * scale))
        group.paste(face.resize(size, Image.Resampling.BICUBIC), (300 + 1000 * number, 150))
    exif = Image.Exif()
    exif[0x0112] = 6
    group.save(photos / "group.jpg")
    group.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.jpg", exif=exif)
    Image.new("RGB", (800, 600), (120, 160, 220)).save(photos / "sky.jpg")
    (photos / "one.jpg").symlink_to(real[2])
    # Enlarged four times, a face has other "faces" in it for the detector, at less confidence.
    common = ["--checkpoint", tiny.ckpt("crafter"), "--device", "cpu", "--min_confidence", "0.99"]
    places = {}
    for faces, count in (("largest", 3), ("all", 5)):
        out = tmp_path / faces
        assert main(["protect", str(photos), "--out", str(out), "--faces", faces, *common]) == 0
        printed = capsys.readouterr().out
        assert f"skipped {photos}/sky.jpg" in printed and f"{count} faces of 3 photographs" in printed
        for path, photo in ledger_of(out)["photos"].items():
            places[faces, Path(path).name] = [Place(**face["place"]) for face in photo["faces"]]
    for name in ("group.jpg", "turned.jpg"):
        (largest,), every = places["largest", name], places["all", name]
        assert largest == every[0] and 1300 < largest.x < 2012 and 1.7 < every[0].side / every[1].side < 2.3
    protector = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="all", min_confidence=0.99)
    assert len(protector.protect(group)) == 2 and len(protector.protect(photos / "turned.jpg")) == 2
    protector.finder.min_size = 1000
    with pytest.raises(UserError, match="no face found"):
        protector.protect(group)


@pytest.mark.data
def test_a_detector_that_fails_loses_one_photograph(real, monkeypatch):
    finder = Finder()

    def fail(*_, **__):
        raise RuntimeError("torch.cat(): expected a non-empty list of Tensors")

    monkeypatch.setattr(finder._net, "detect", fail)
    with pytest.raises(Refused, match="RuntimeError"):
        finder.find(Image.open(real[0]).convert("RGB"))
