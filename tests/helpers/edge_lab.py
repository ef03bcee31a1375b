"""A folder of photographs, and `protect` on it."""

import json

import pytest
from PIL import Image

from crafter_pl.cli import main
from crafter_pl.edge import protector as protector_module
from crafter_pl.edge.ledger import private_file

FACES = 11

LOADED = {}


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    """A defence that one of these tests has loaded is not read again by the next: half of their time."""

    def load(path, plain=protector_module.load_defense):
        if str(path) not in LOADED:
            LOADED[str(path)] = plain(path)
        return LOADED[str(path)]

    monkeypatch.setattr(protector_module, "load_defense", load)


@pytest.fixture
def folder(tiny, tmp_path):
    """Eleven drawn faces of 32 pixels, in two folders."""
    for number, image in enumerate(tiny.data().rows("private_test")["image"][:FACES]):
        file = tmp_path / "photos" / ("a" if number < 6 else "b") / f"portrait_of_{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(file)
    return tmp_path / "photos"


@pytest.fixture
def go(tiny, folder):
    """`go(...)` protects the folder into `out`, or what is given instead."""

    def command(*more, photos=(), out="store"):
        photos = photos or [folder]
        place = ["--out", str(folder.parent / out), "--checkpoint", tiny.ckpt("crafter")]
        return [
            *("protect", *map(str, photos), *place),
            *("--faces", "none", "--batch_size", "4", "--device", "cpu", "--protect.steps", "1", *more),
        ]

    run = lambda *more, **kwargs: main(command(*more, **kwargs))  # noqa: E731
    run.command = command
    return run


def ledger_of(store):
    return json.loads(private_file(store).read_text())
