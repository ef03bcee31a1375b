import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from edge_lab import FACES, _loaded_once, folder, go, ledger_of  # noqa: F401
from PIL import Image

import crafter_pl
from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.data.transport import received
from crafter_pl.edge import protector as protector_module
from crafter_pl.edge.faces import Finder
from crafter_pl.edge.ledger import private_file
from crafter_pl.edge.protector import Protector
from crafter_pl.errors import UserError


def indices(store):
    """The indices of the faces by the photographs' names."""
    photos = ledger_of(store)["photos"].items()
    return {Path(path).name: [face["index"] for face in photo["faces"]] for path, photo in photos}


# The store


def test_a_folder_becomes_a_store(go, folder, tiny, capsys):
    store = folder.parent / "store"
    double = "float64"  # in float32 one step may magnify the rounding
    assert go("--protect.precision", double) == 0
    out = capsys.readouterr().out
    assert f"{FACES} faces of {FACES} photographs" in out and "skipped: none" in out
    assert f"{store}.private.json" in out and "drawn by code" in out
    features, index, manifest = read_store(store)
    assert index.tolist() == list(range(FACES)) and features.shape[1:] == tuple(manifest["shape"])
    assert manifest["count"] == FACES and list(manifest["shards"].values()) == [4, 4, 3]
    assert manifest["defense"] == "answers" and manifest["split"] == "photographs"
    assert manifest["cost"]["seconds_per_image"] > 0

    order = [where for (where,) in indices(store).values()]
    assert sorted(order) == list(range(FACES)) and order != sorted(order)
    # Each feature is what the defence makes of its own photograph, keyed by the ledger's seed and index.
    seed = ledger_of(store)["seed"]
    told = {"seed": seed, "steps": 1, "precision": double}
    protector = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", **told)
    plain = protector.defense.task
    for name, (where,) in indices(store).items():
        image = np.asarray(Image.open(next(folder.rglob(name)))).transpose(2, 0, 1)
        face = torch.from_numpy(image.copy())[None]
        made = protector.craft(face, torch.tensor([where]))[0]
        assert (made - features[where]).abs().max() < 1e-5, name
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
    assert "dtype" in capsys.readouterr().err


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
    assert err.startswith("error: ") and store in err and "photographs" in err
    assert main(tiny.command("predict", "crafter", "--protect.out", store)) == 2
    assert store in capsys.readouterr().err


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
    assert sum(f"{folder.parent}/absent.jpg" in text for text in printed) == 1
    assert sum(f"{mixed}/empty.jpg" in text for text in printed) == 1
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
    assert "skipped: " in err and "Traceback" not in err
    assert not (folder.parent / "store").exists() and not private_file(folder.parent / "store").exists()
    assert go(photos=["--margin", "0"]) == 2
    assert "no photographs given" in capsys.readouterr().err


def test_photographs_without_a_face(go, folder, capsys):
    Image.new("RGB", (300, 200), (90, 120, 150)).save(folder / "a" / "a_sky.png")
    mixed = ["--faces", "largest", "--no_face", "error"]
    assert go(*mixed, photos=[folder / "a"]) == 2
    err = capsys.readouterr().err
    assert "a_sky.png: no face found" in err
    assert go(*mixed, photos=[folder / "a"]) == 2  # still
    assert go("--faces", "largest", photos=[folder / "a" / "a_sky.png"]) == 2
    assert "skipped: 1 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "absent.ckpt"], "absent.ckpt"),
        (["--protect.method", "magic"], "option method"),
        (["--protect.beta", "much"], "--protect.beta"),
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
    with pytest.raises(UserError, match=r"gamma.*transport"):
        Protector.load(tiny.ckpt("crafter"), gamma=1)
    with pytest.raises(UserError, match="leave out budget, person"):
        Protector.load(tiny.ckpt("crafter"), budget=7, person="Ann")
    with pytest.raises(UserError, match="not of a defence"):
        Protector.load(tiny.ckpt("task"))
    with pytest.raises(UserError, match=r"nowhere.png: missing"):
        protector.protect("nowhere.png")
    with pytest.raises(UserError, match="too small"):
        protector.protect(array[:20])
    with pytest.raises(UserError, match="cannot protect a list"):
        protector.protect([file])


def test_no_face_in_python(tiny):
    protector = Protector.load(tiny.ckpt("crafter"), device="cpu")
    with pytest.raises(UserError, match="no face found"):
        protector.protect(np.full((200, 300, 3), 127, np.uint8))


def test_a_checkpoint_without_a_frame_is_noted(tiny, monkeypatch, capsys):
    load = protector_module.load_defense(tiny.ckpt("crafter"))
    assert load.task.frame is not None
    template = Protector.load(tiny.ckpt("crafter"), device="cpu", crafter=True).finder.template
    assert "frame" not in capsys.readouterr().out
    assert not np.allclose(template, Finder("none").template)
    monkeypatch.setattr(load.task, "frame", None)
    template = Protector.load(tiny.ckpt("crafter"), device="cpu", crafter=True).finder.template
    assert "frame" in capsys.readouterr().out
    assert np.allclose(template, Finder("none").template)
    Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", crafter=True)
    assert "frame" not in capsys.readouterr().out


def test_the_default_is_not_what_adapting_attackers_undo(tiny, capsys):
    """Answers with beta 0, also of a Crafter that was trained without the cloud's answers (the paper's)."""
    made = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none")
    assert made.defense.stage_name == "answers" and made.options.beta == 0
    assert "gallery" in capsys.readouterr().out
    asked = Protector.load(tiny.ckpt("crafter"), device="cpu", faces="none", crafter=True)
    assert asked.defense.stage_name == "crafter"
    assert "public faces" in capsys.readouterr().out


def test_importing_the_package_is_light():
    code = (
        "import sys, crafter_pl; assert 'torch' not in sys.modules and 'Protector' in crafter_pl.__all__\n"
        "try: crafter_pl.nothing\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
