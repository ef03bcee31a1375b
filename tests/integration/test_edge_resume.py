import os
import signal
from functools import partial

import pytest
import torch
from edge_lab import FACES, _loaded_once, folder, go, ledger_of  # noqa: F401
from experiment import forked
from PIL import Image

from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.edge import protect as verb
from crafter_pl.edge.ledger import private_file
from crafter_pl.edge.protector import Protector
from crafter_pl.files import lock
from crafter_pl.progress import Steps

# Going on


def dies(name, count):
    """In this process, the verb's function of that name ends it by SIGKILL after so many calls."""
    verb._SAVE_EVERY = 0.0
    left, plain = [count], getattr(verb, name)

    def dying(*args):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args)

    setattr(verb, name, dying)


@pytest.mark.parametrize(("where", "count"), [("_examine", 5), ("_protect", 2)])
def test_killed_and_resumed_equals_straight(go, folder, where, count, capsys, monkeypatch):
    seeded = go.command("--protect.seed", "9")
    log = folder.parent / "log"
    killed = forked(seeded, log, log, before=partial(dies, where, count))
    killed.join(200)
    assert killed.exitcode == -9, log.read_text()
    store = folder.parent / "store"
    assert not (store / "manifest.json").exists()
    assert len(ledger_of(store)["photos"]) == (5 if where == "_examine" else FACES)
    assert private_file(store).stat().st_mode & 0o777 == 0o600
    assert len(list(store.glob("shard-*"))) == (0 if where == "_examine" else 2)
    (store / ".shard-00002.safetensors.999999999.tmp").write_bytes(b"left by the kill")

    done = []
    plain = getattr(verb, where)
    monkeypatch.setattr(verb, where, lambda *args: done.append(1) or plain(*args))
    assert main(seeded) == 0
    assert len(done) == (6 if where == "_examine" else 1)
    monkeypatch.undo()
    assert go("--protect.seed", "9", out="straight") == 0
    for file in (folder.parent / "straight").glob("shard-*"):
        assert file.read_bytes() == (store / file.name).read_bytes()
    assert {file.name for file in store.iterdir()} == {f.name for f in (folder.parent / "straight").iterdir()}

    capsys.readouterr()
    assert go() == 0  # the seed need not be given again
    out = capsys.readouterr().out
    assert "is complete already" in out and f"protected {FACES} faces" in out


def test_interrupted_and_resumed(go, folder, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb.StoreWriter, "write", stop)
        assert go() == 130
    err = capsys.readouterr().err
    assert "python -m crafter_pl protect" in err
    # Meanwhile one photograph has gone, one has changed, and one has come.
    (folder / "a" / "portrait_of_02.png").unlink()
    Image.new("RGB", (40, 40)).save(folder / "b" / "portrait_of_07.png")
    Image.new("RGB", (40, 40)).save(folder / "b" / "new.png")
    assert go() == 2
    assert "new.png" in capsys.readouterr().err
    (folder / "b" / "new.png").unlink()
    assert go() == 0
    out = capsys.readouterr().out
    for name in ("a/portrait_of_02.png", "b/portrait_of_07.png"):
        assert f"skipped {folder}/{name}" in out
    assert "9 faces of 9 photographs" in out and "skipped: 2 " in out
    assert read_manifest(folder.parent / "store")["count"] == 9
    assert go() == 0 and "is complete already" in capsys.readouterr().out


def test_a_lost_shard_is_made_again(go, folder):
    assert go() == 0
    file = folder.parent / "store" / "shard-00001.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:100])
    assert go() == 0
    assert file.read_bytes() == before


def test_faces_that_cannot_be_crafted(go, folder, monkeypatch, capsys):
    plain = Protector.craft

    def craft(self, faces, index, people):
        made = plain(self, faces, index, people)
        made[index == 5] = float("nan")
        return made

    monkeypatch.setattr(Protector, "craft", craft)
    assert go() == 0
    out = capsys.readouterr().out
    assert "no finite feature" in out and "skipped: 1 not protected" in out
    assert read_store(folder.parent / "store")[1].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Protector, "craft", full)
    assert go(out="full") == 2
    assert "--batch_size" in capsys.readouterr().err


def test_other_settings_are_refused(go, folder, tiny, capsys):
    assert go(photos=[folder / "b"]) == 0
    for options, words in (
        (["--protect.beta", "2"], "protect.beta: 0.0 there, 2.0 here"),
        (["--margin", "0.1"], "margin: 0.0 there, 0.1 here"),
        (["--batch_size", "5"], "batch_size: 4 there, 5 here"),
        (["--protect.seed", "3"], "protect.seed: another"),
    ):
        assert go(*options, photos=[folder / "b"]) == 2
        err = capsys.readouterr().err
        assert "checkpoint" in err and words in err
    private_file(folder.parent / "store").rename(folder.parent / "mislaid")
    assert go(photos=[folder / "b"]) == 2
    assert "store.private.json" in capsys.readouterr().err
    private_file(folder.parent / "store").write_text("{}")
    assert go(photos=[folder / "b"]) == 2
    assert "store.private.json" in capsys.readouterr().err


def test_two_at_once(go, folder, capsys):
    with lock(folder.parent / "store"):
        assert go() == 2
        assert "another process" in capsys.readouterr().err
        assert (folder.parent / "store").is_dir()


def test_progress_tells_the_time_left(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("crafter_pl.progress.time.perf_counter", lambda: clock[0])
    steps = Steps("protecting", 40, unit="faces")
    steps.step(8, done_before=True)
    for _ in range(4):
        clock[0] += 4
        steps.step(8)
    assert capsys.readouterr().out.splitlines() == [
        "protecting 16/40 faces, 12 s left",
        "protecting 40/40 faces, 0 s left",
    ]
