"""The ledger beside a store: what another hand has written into it, and what killed processes left."""

import json
import subprocess
import sys

import pytest

from crafter_pl.edge.faces import Place
from crafter_pl.edge.ledger import Face, Ledger, Photo, private_file
from crafter_pl.errors import UserError


@pytest.fixture
def store(tmp_path):
    """A store that was begun: three faces of two photographs, one whose name is no UTF-8."""
    folder = tmp_path / "store"
    folder.mkdir()
    ledger = Ledger(folder, {"beta": 0.5}, 7)
    places = [Face(Place(1.5, 2.0, 30.0)) for _ in range(3)]
    ledger.photos = {"/a.jpg": Photo([1, 2], places[:2]), "/caf\udce9.jpg": Photo([], places[2:])}
    ledger.plan(list(ledger.photos))
    return folder


def rewrite(store, change):
    file = private_file(store)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_what_was_saved_is_read(store):
    read = Ledger(store, {"beta": 0.5}, None)
    assert read.seed == 7 and read.planned and list(read.photos) == ["/a.jpg", "/caf\udce9.jpg"]
    assert sorted(face.index for face in read.faces()) == [0, 1, 2]
    assert private_file(store).stat().st_mode & 0o777 == 0o600


def put(key, value):
    return lambda content: content.update({key: value})


def in_face(key, value):
    return lambda content: content["photos"]["/a.jpg"]["faces"][0].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        *(put("seed", value) for value in (None, True, 7.5, "7", 2**70)),
        *(put("planned", value) for value in (None, 1, "yes")),
        *(put("photos", value) for value in (None, [], {"/a.jpg": None}, {"/a.jpg": {"faces": 3}})),
        *(put("version", value) for value in (0, 2, "1")),
        *(in_face("index", value) for value in (-1, 5, True, "0", 2**70, None)),
        *(in_face("lost", value) for value in (3, ["x"])),
        *(in_face("place", value) for value in (None, {"x": 1}, {"x": "1", "y": 2, "side": 3, "angle": 0})),
        lambda content: content["photos"]["/a.jpg"].update(skipped=4),
        lambda content: content.pop("settings"),
    ],
)
def test_a_ledger_of_absurd_values_is_one_message(store, change):
    rewrite(store, change)
    with pytest.raises(UserError, match="--out"):
        Ledger(store, {"beta": 0.5}, None)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", '{"seed": 1, "seed": 2}', '{"seed": NaN}', "[]", "\xff"]
)
def test_a_ledger_that_is_no_json(store, text):
    private_file(store).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="--out"):
        Ledger(store, {"beta": 0.5}, None)


def test_what_a_killed_process_left_is_removed(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [store / f".shard-00000.safetensors.{dead.pid}.tmp"]
    left.append(store.parent / f".{private_file(store).name}.{dead.pid}.tmp")
    other = store.parent / f".other.private.json.{dead.pid}.tmp"
    for file in (*left, other):
        file.write_text("half")
    Ledger(store, {"beta": 0.5}, None)
    assert not any(file.exists() for file in left) and other.exists()
