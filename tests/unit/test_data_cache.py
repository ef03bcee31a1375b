import os
import resource
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from sources_lab import HOW, damage, folder, picture  # noqa: F401

from crafter_pl.data import decoding
from crafter_pl.data.decoding import Decoding, decode_all
from crafter_pl.data.sources import load_folder

# Cache and memory


def test_cache_is_used_until_a_file_or_an_option_changes(folder, tmp_path, monkeypatch):
    how = Decoding(8, cache_dir=tmp_path / "cache")
    first = load_folder(folder, how)
    assert sorted(p.suffix for p in how.cache_dir.iterdir()) == [".bin", ".json"]
    calls = []
    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: calls.append(args) or original(*args))
    again = load_folder(folder, how)
    assert not calls and torch.equal(again.images, first.images) and again.file_names == first.file_names
    load_folder(folder, Decoding(6, cache_dir=how.cache_dir))
    assert len(calls) == 5
    picture(folder / "bob" / "b.png", (1, 2, 3))
    os.utime(folder / "bob" / "b.png", ns=(1, 1))
    changed = load_folder(folder, how)
    assert len(calls) == 10 and changed.images[4].float().mean() < 4


@pytest.mark.parametrize("ending", [".bin", ".json"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, ending):
    how = Decoding(8, cache_dir=tmp_path / "cache")
    first = load_folder(folder, how)
    file = next(p for p in how.cache_dir.iterdir() if p.suffix == ending)
    damage(file)
    assert torch.equal(load_folder(folder, how).images, first.images)
    assert not list(how.cache_dir.glob("*.tmp"))


def test_an_interrupted_decoding_leaves_no_cache(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        load_folder(folder, Decoding(8, cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("cached", [False, True])
def test_too_large_for_memory_is_mapped_from_disk(folder, tmp_path, monkeypatch, cached):
    monkeypatch.setattr(decoding.tempfile, "tempdir", str(tmp_path))
    damage(folder / "ann" / "a.png")
    plain = load_folder(folder, HOW)
    how = Decoding(8, max_memory_mb=0, cache_dir=tmp_path / "cache" if cached else None)
    for _ in range(2):
        mapped = load_folder(folder, how)
        assert torch.equal(mapped.images, plain.images) and mapped.images.shape == (4, 3, 8, 8)
    assert not list(tmp_path.glob("crafter_pl-faces-*"))


def test_long_decoding_shows_the_projects_progress(folder, capsys, monkeypatch):
    load_folder(folder, HOW)
    assert "decoding" not in capsys.readouterr().out
    monkeypatch.setattr(decoding, "Steps", partial(decoding.Steps, interval=0.0))
    load_folder(folder, HOW)
    captured = capsys.readouterr()
    assert "decoding 5/5 pictures" in captured.out and "\r" not in captured.out + captured.err


@contextmanager
def small_disk(size):
    """No file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk_is_an_error_and_leaves_nothing(folder, tmp_path, monkeypatch, cached, reserve):
    monkeypatch.setattr(decoding.tempfile, "tempdir", str(tmp_path))
    if not reserve:  # as where the system cannot
        monkeypatch.setattr(decoding, "_reserve", lambda *_: None)
    before = sorted(tmp_path.iterdir())
    how = Decoding(32, max_memory_mb=0, cache_dir=tmp_path / "cache" if cached else None)
    with small_disk(4000), pytest.raises(OSError, match=r"large|space") as error:
        load_folder(folder, how)
    assert str(tmp_path) in str(error.value)
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == before
    assert not cached or not list((tmp_path / "cache").iterdir())


def test_pictures_are_never_written_through_a_mapping(folder, tmp_path, monkeypatch):
    """A full disk would end the process with SIGBUS."""
    modes = []
    plain = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda *args, mode, **more: modes.append(mode) or plain(*args, mode=mode, **more)
    )
    load_folder(folder, Decoding(8, max_memory_mb=0, cache_dir=tmp_path / "cache"))
    assert modes == ["c"]


def test_decode_all_returns_positions(folder):
    (folder / "ann" / "a.png").write_text("broken")
    images, kept = decode_all(folder, ["ann/a.png", "bob/b.png"], HOW)
    assert kept == [1] and images.shape == (1, 3, 8, 8)
