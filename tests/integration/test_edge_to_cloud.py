"""Photographs to attributes on drawn faces, and what the check of the wire finds on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from experiment import PATHS
from PIL import Image
from safetensors.torch import load, save

from crafter_pl.edge.photos import open_photo
from crafter_pl.edge.protector import Protector

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import wire  # noqa: E402


@pytest.fixture(scope="module")
def trip(tiny, tmp_path_factory):
    """The script's run: what it printed, and its folders."""
    home = tmp_path_factory.mktemp("trip")
    (home / "photos").mkdir()
    for number, image in enumerate(tiny.data().rows("private_test")["image"][:5]):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(home / "photos" / f"{number}.png")
    (home / "photos" / "broken.jpg").write_bytes(b"no picture at all" * 20)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {**os.environ, "PATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(PATHS)
    args = [tiny.ckpt("crafter"), str(home / "photos"), str(home / "out"), "--faces", "none"]
    done = subprocess.run(
        ["bash", str(SCRIPTS / "edge_to_cloud.sh"), *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,  # a slow machine is no fault
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done.stdout


def test_photographs_to_attributes(trip, tiny):
    home, printed = trip
    assert "nothing verbatim" in printed and "within 5%" in printed
    answers = json.loads((home / "out" / "attributes.json").read_text())
    assert {Path(path).name: len(found) for path, found in answers.items()} == {
        **{f"{number}.png": 1 for number in range(5)},
        "broken.jpg": 0,
    }
    names = tiny.data().attribute_names
    for found in answers.values():
        assert all(sorted(face) == sorted(names) for face in found)
        assert all(0 <= value <= 1 for face in found for value in face.values())


def test_what_left_is_the_store(trip):
    home, _ = trip
    sent = wire.bodies((home / "out" / "wire.bin").read_bytes())
    assert sent == [file.read_bytes() for file in sorted((home / "out" / "store").glob("shard-*"))]


def request(body):
    return b"POST /classify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_leaks_are_found(trip, tiny):
    home, _ = trip
    store, checkpoint = home / "out" / "store", tiny.ckpt("crafter")
    sound = (home / "out" / "wire.bin").read_bytes()
    assert wire.check(sound, store, checkpoint) == []
    photo = home / "photos" / "2.png"
    assert (
        wire.check(sound + request(photo.read_bytes()), store, checkpoint)[0]
        == f"a piece of the file {photo}"
    )
    pixels = torch.frombuffer(bytearray(open_photo(photo)[0].tobytes()), dtype=torch.uint8)
    (body, *_) = wire.bodies(sound)
    with_pixels = request(save({**load(body), "image": pixels}))
    assert wire.check(with_pixels, store, checkpoint) == [
        f"pixels of a face in {photo}",
        "a body that is no shard of features (tensor 'image' is not expected: features, and index, are)",
    ]
    task = Protector.load(checkpoint, device="cpu", faces="none").defense.task
    with torch.no_grad():
        plain = task.edge(pixels.view(32, 32, 3).permute(2, 0, 1)[None].float().div(255))
    near = plain + 0.01 * plain.norm() / plain.numel() ** 0.5 * torch.randn_like(plain)
    leaks = wire.check(request(save({"features": near})), store, checkpoint)
    assert leaks == ["1 features within 5% of an unprotected one"]


def test_without_its_arguments(tmp_path):
    done = subprocess.run(["bash", str(SCRIPTS / "edge_to_cloud.sh")], capture_output=True, text=True)
    assert done.returncode == 2 and "CHECKPOINT PHOTOS OUT" in done.stderr
