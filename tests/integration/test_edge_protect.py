import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

import crafter_pl
from crafter_pl.cli import main
from crafter_pl.data.framing import OFFICIAL, Frame, measure_frame
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.data.transport import received
from crafter_pl.edge import protect as verb
from crafter_pl.edge import protector as protector_module
from crafter_pl.edge.faces import Finder, Place
from crafter_pl.edge.ledger import private_file
from crafter_pl.edge.photos import Refused
from crafter_pl.edge.protector import Protector
from crafter_pl.errors import UserError
from crafter_pl.files import lock
from crafter_pl.progress import Steps

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
    for number, image in enumerate(tiny.data().images("private_test")[:FACES]):
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


def indices(store):
    """The indices of the faces by the photographs' names."""
    photos = ledger_of(store)["photos"].items()
    return {Path(path).name: [face["index"] for face in photo["faces"]] for path, photo in photos}


# The store


def test_a_folder_becomes_a_store(go, folder, tiny, capsys):
    store = folder.parent / "store"
    assert go() == 0
    out = capsys.readouterr().out
    assert f"protected {FACES} faces of {FACES} photographs in {store}; skipped: none" in out
    assert f"keep {store}.private.json on this device" in out and "drawn by code" in out
    features, index, manifest = read_store(store)
    assert index.tolist() == list(range(FACES)) and features.shape[1:] == tuple(manifest["shape"])
    assert manifest["count"] == FACES and list(manifest["shards"].values()) == [4, 4, 3]
    assert manifest["defense"] == "answers" and manifest["split"] == "photographs"
    assert manifest["cost"]["seconds_per_image"] > 0

    order = [where for (where,) in indices(store).values()]
    assert sorted(order) == list(range(FACES)) and order != sorted(order)
    # Each feature is what the defence makes of its own photograph, keyed by the ledger's seed and index.
    seed = ledger_of(store)["seed"]
    protector = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", seed=seed, steps=1)
    plain = protector.defense.task
    for name, (where,) in indices(store).items():
        image = np.asarray(Image.open(next(folder.rglob(name)))).transpose(2, 0, 1)
        face = torch.from_numpy(image.copy())[None]
        made = protector.craft(face, torch.tensor([where]))[0]
        assert (made - features[where]).abs().max() < 1e-3, name
        with torch.no_grad():
            assert (plain.edge(face / 255)[0] - features).abs().flatten(1).max(1).values.min() > 0.05, name


def test_nothing_private_is_in_the_store(go, folder):
    store = folder.parent / "store"
    assert go("--protect.seed", "1234567890123456789") == 0
    assert ledger_of(store)["seed"] == 1234567890123456789
    assert {file.name.partition("-")[0] for file in store.iterdir()} == {"manifest.json", "shard"}
    words = [
        b"portrait_of",
        b"photos/",
        b".png",
        str(folder.parent).encode(),
        b"seed",
        b"1234567890123456789",
    ]
    words += [(1234567890123456789).to_bytes(8, order) for order in ("little", "big")]
    for file in store.iterdir():
        content = file.read_bytes()
        assert not [word for word in words if word in content], file
    assert private_file(store).stat().st_mode & 0o777 == 0o600
    # A seed that can be guessed is not betrayed by a hash of it either.
    assert go("--protect.seed", "1", out="one") == 0 and go("--protect.seed", "2", out="two") == 0
    one, two = read_manifest(folder.parent / "one"), read_manifest(folder.parent / "two")
    del one["cost"], two["cost"]
    assert one == two
    assert indices(folder.parent / "one") != indices(folder.parent / "two")


def test_features_travel_in_fewer_bytes(go, folder, capsys):
    plain, small = folder.parent / "store", folder.parent / "small"
    assert (
        go("--protect.seed", "5") == 0 and go("--protect.seed", "5", "--transport", "int8", out="small") == 0
    )
    features, _, manifest = read_store(small)
    assert manifest["dtype"] == manifest["settings"]["transport"] == "int8"
    assert manifest["cost"]["bytes_per_image"] == features[0].numel() + 8
    assert torch.equal(features, received(read_store(plain)[0], "int8"))
    assert sum(file.stat().st_size for file in small.iterdir()) < 0.5 * sum(
        file.stat().st_size for file in plain.iterdir()
    )
    capsys.readouterr()
    assert go("--protect.seed", "5", "--transport", "float16", out="small") == 2
    assert "dtype: 'int8' there, 'float16' here" in capsys.readouterr().err


def test_seeds_are_drawn_anew(go, folder):
    assert go(photos=[folder / "b"]) == 0 and go(photos=[folder / "b"], out="again") == 0
    seeds = {ledger_of(folder.parent / name)["seed"] for name in ("store", "again")}
    assert len(seeds) == 2 and all(seed > 2**32 for seed in seeds)


def test_an_audit_of_photographs_is_refused(go, folder, tiny, capsys):
    assert go(photos=[folder / "b"]) == 0
    capsys.readouterr()
    store = str(folder.parent / "store")
    oracles = f"[{tiny.ckpt('oracle_resnet')}]"
    more = ["--features", f"[{store}]", "--oracles", oracles, "--out", str(folder.parent / "report")]
    assert main(tiny.command("audit", "audit", *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {store} holds features of photographs (made with protect): nobody has")
    assert main(tiny.command("predict", "crafter", "--protect.out", store)) == 2
    assert "holds features of other settings" in capsys.readouterr().err


# Whatever is among the photographs


def test_hostile_files_are_left_out_and_odd_ones_are_not(go, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    mixed = folder / "mixed"
    mixed.mkdir()
    lines, remarks = hostile.refused(mixed), hostile.taken(mixed)
    given = ["photos", "absent.jpg", "photos/mixed/pipe.jpg", "photos/mixed/empty.jpg"]
    assert go(photos=given) == 0
    captured = capsys.readouterr()
    printed = captured.out.splitlines()
    for name, line in lines.items():
        start = f"skipped {mixed}/{name}: {line}"
        assert sum(text.startswith(start) for text in printed) == 1, (name, captured.out)
    assert f"skipped {folder.parent}/absent.jpg: missing" in printed
    assert f"skipped {mixed}/empty.jpg: no files in it" in printed
    for name, remark in remarks.items():
        noted = [text for text in printed if text.startswith(f"note: {mixed}/{name}: ")]
        assert bool(noted) == bool(remark) and (not remark or remark in noted[0]), name
    count = FACES + len(remarks) + 1  # good.jpg, which the bad ones are made from
    summary = next(text for text in printed if text.startswith("protected "))
    assert summary.startswith(f"protected {count} faces of {count} photographs in ")
    told = dict(reversed(part.split(" ", 1)) for part in summary.partition("skipped: ")[2].split(", "))
    assert told["damaged or truncated"] == "5" and told["too many pixels"] == "2" and told["missing"] == "1"
    assert sum(map(int, told.values())) == len(lines) + 2
    assert captured.err == "" and read_manifest(folder.parent / "store")["count"] == count


def test_nothing_usable(go, folder, capsys):
    (folder.parent / "bad").mkdir()
    hostile.refused(folder.parent / "bad")
    assert go(photos=[folder.parent / "bad"]) == 2
    err = capsys.readouterr().err
    assert "error: no face could be protected (skipped: " in err and "Traceback" not in err
    assert not (folder.parent / "store").exists() and not private_file(folder.parent / "store").exists()
    assert go(photos=["--margin", "0"]) == 2
    assert "no photographs given" in capsys.readouterr().err


def test_photographs_without_a_face(go, folder, capsys):
    Image.new("RGB", (300, 200), (90, 120, 150)).save(folder / "a" / "a_sky.png")
    mixed = ["--faces", "largest", "--no_face", "error"]
    assert go(*mixed, photos=[folder / "a"]) == 2
    err = capsys.readouterr().err
    assert "a_sky.png: no face found; remove it, or give --no_face skip" in err
    assert go(*mixed, photos=[folder / "a"]) == 2  # still
    assert go("--faces", "largest", photos=[folder / "a" / "a_sky.png"]) == 2
    assert "no face could be protected (skipped: 1 no face found)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "absent.ckpt"], "absent.ckpt"),
        (["--protect.method", "magic"], "answers has no option method: it has transport, seed, beta"),
        (["--protect.beta", "much"], "--protect.beta 'much': give a number"),
        (["--protect.steps", "0"], "--protect.steps"),
        (["--batch_size", "0"], "--batch_size"),
        (["--min_confidence", "7"], "--min_confidence"),
        (["--max_pixels", "0"], "--max_pixels"),
        (["--device", "abacus"], "abacus"),
        (["--faces", "some"], "faces"),
    ],
)
def test_mistakes_are_one_message(go, folder, options, words, capsys):
    assert go(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and "Traceback" not in err
    assert not (folder.parent / "store").exists()


def test_a_store_that_cannot_be_written(go, folder, capsys):
    (folder.parent / "file").write_text("x")
    assert go(out="file") == 2
    assert "File exists" in capsys.readouterr().err
    (folder.parent / "full").mkdir()
    (folder.parent / "full" / "letter.txt").write_text("x")
    assert go(out="full") == 2
    assert "is not empty" in capsys.readouterr().err


# Going on


KILLED = """
import os, signal, sys
from crafter_pl.cli import main
from crafter_pl.edge import protect
protect._SAVE_EVERY = 0.0
name, count = sys.argv[1], [int(sys.argv[2])]
plain = getattr(protect, name)
def dying(*args):
    count[0] -= 1
    if count[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)
setattr(protect, name, dying)
main(sys.argv[3:])
"""


@pytest.mark.parametrize(("where", "count"), [("_examine", 5), ("_protect", 2)])
def test_killed_and_resumed_equals_straight(go, folder, where, count, capsys, monkeypatch):
    seeded = go.command("--protect.seed", "9")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, where, str(count), *seeded]
    killed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -9, killed.stderr
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
    assert "interrupted; go on with the same command: python -m crafter_pl protect" in err
    # Meanwhile one photograph has gone, one has changed, and one has come.
    (folder / "a" / "portrait_of_02.png").unlink()
    Image.new("RGB", (40, 40)).save(folder / "b" / "portrait_of_07.png")
    Image.new("RGB", (40, 40)).save(folder / "b" / "new.png")
    assert go() == 2
    assert "1 of the photographs are new" in (err := capsys.readouterr().err) and "new.png first" in err
    (folder / "b" / "new.png").unlink()
    assert go() == 0
    out = capsys.readouterr().out
    for name in ("a/portrait_of_02.png", "b/portrait_of_07.png"):
        assert f"skipped {folder}/{name}: gone or changed" in out
    assert "protected 9 faces of 9 photographs" in out and "skipped: 2 gone or changed" in out
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

    def craft(self, faces, index):
        made = plain(self, faces, index)
        made[index == 5] = float("nan")
        return made

    monkeypatch.setattr(Protector, "craft", craft)
    assert go() == 0
    out = capsys.readouterr().out
    assert "crafting gave no finite feature" in out and "skipped: 1 not protected" in out
    assert read_store(folder.parent / "store")[1].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Protector, "craft", full)
    assert go(out="full") == 2
    assert "give a smaller --batch_size" in capsys.readouterr().err


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
        assert "was begun with other settings or another checkpoint" in err and words in err
    private_file(folder.parent / "store").rename(folder.parent / "mislaid")
    assert go(photos=[folder / "b"]) == 2
    assert (
        "store.private.json, which would say of which photographs it is, is missing"
        in capsys.readouterr().err
    )
    private_file(folder.parent / "store").write_text("{}")
    assert go(photos=[folder / "b"]) == 2
    assert "store.private.json cannot be read" in capsys.readouterr().err


def test_two_at_once(go, folder, capsys):
    with lock(folder.parent / "store"):
        assert go() == 2
        assert "another process is writing" in capsys.readouterr().err
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


# Python


def test_python(tiny, folder, tmp_path):
    plain = {"faces": "none", "crafter": True, "steps": 2, "seed": 4, "device": "cpu"}
    protector = crafter_pl.Protector.load(tiny.ckpt("crafter"), **plain)
    file = folder / "a" / "portrait_of_00.png"
    array = np.asarray(Image.open(file))
    first = protector.protect(file)
    assert first.shape == (1, *protector.feature_shape) and first.dtype == torch.float32
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for image in (str(file), Image.open(file), array, tensor, array / 255.0):
        assert (protector.protect(image) - first).abs().max() < 1e-3  # Crafter draws no noise
    runs = tmp_path / "runs"
    task = ["--runs_dir", str(runs), "--model.init_args.task_ckpt", tiny.ckpt("task")]
    assert main([*tiny.command("fit", "noise")[:3], *task]) == 0
    noisy = runs / "synthetic" / "noise" / "checkpoints" / "best.ckpt"
    drawing = Protector.load(noisy, faces="none", device="cpu")
    assert (drawing.protect(file) - drawing.protect(file)).abs().max() > 1e-3  # this one does: anew each time
    with pytest.raises(UserError, match="no option gamma: it has transport, seed, beta, steps"):
        Protector.load(tiny.ckpt("crafter"), gamma=1)
    with pytest.raises(UserError, match="not of a defence"):
        Protector.load(tiny.ckpt("task"))
    with pytest.raises(UserError, match=r"nowhere.png: missing"):
        protector.protect("nowhere.png")
    with pytest.raises(UserError, match="the image given: too small"):
        protector.protect(array[:20])
    with pytest.raises(UserError, match="cannot protect a list"):
        protector.protect([file])


def test_no_face_in_python(tiny):
    protector = Protector.load(tiny.ckpt("crafter"), device="cpu")
    with pytest.raises(UserError, match="the image given: no face found"):
        protector.protect(np.full((200, 300, 3), 127, np.uint8))


def test_a_checkpoint_without_a_frame_is_noted(tiny, monkeypatch, capsys):
    load = protector_module.load_defense(tiny.ckpt("crafter"))
    assert load.task.frame is not None
    template = Protector.load(tiny.ckpt("crafter"), device="cpu", crafter=True).finder.template
    assert "frame a face" not in capsys.readouterr().out
    assert not np.allclose(template, Finder("none").template)
    monkeypatch.setattr(load.task, "frame", None)
    template = Protector.load(tiny.ckpt("crafter"), device="cpu", crafter=True).finder.template
    assert "does not know how its training pictures frame a face" in capsys.readouterr().out
    assert np.allclose(template, Finder("none").template)
    Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", crafter=True)
    assert "frame a face" not in capsys.readouterr().out


def test_the_default_is_not_what_adapting_attackers_undo(tiny, capsys):
    """Answers with beta 0, also of a Crafter that was trained without the cloud's answers (the paper's)."""
    made = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none")
    assert made.defense.stage_name == "answers" and made.options.beta == 0
    assert "gallery" in capsys.readouterr().out
    asked = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", crafter=True)
    assert asked.defense.stage_name == "crafter"
    assert "gets most of the people back" in capsys.readouterr().out


def test_importing_the_package_is_light():
    code = (
        "import sys, crafter_pl; assert 'torch' not in sys.modules and 'Protector' in crafter_pl.__all__\n"
        "try: crafter_pl.nothing\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
        assert f"skipped {photos}/sky.jpg: no face found" in printed
        assert (
            f"protected {count} faces of 3 photographs" in printed and "skipped: 1 no face found" in printed
        )
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
    with pytest.raises(Refused, match=r"no face found .*the detector failed: RuntimeError"):
        finder.find(Image.open(real[0]).convert("RGB"))
