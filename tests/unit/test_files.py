"""A folder is one process's at a time, and shows nothing of that afterwards."""

import os
import subprocess
import sys
import threading

import pytest

from crafter_pl.errors import UserError
from crafter_pl.files import LOCK, lock, write_file

HOLD = "import filelock, sys, time; file = filelock.FileLock(sys.argv[1])\n"
HOLD += "with file: print('mine', flush=True); time.sleep(60)"


def test_another_process_is_refused_or_waits_until_the_holder_dies(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "x"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / LOCK)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match=r"x: .*--out"):
            with lock(folder, doing="writing", other="--out"):
                pass
        with monkeypatch.context() as helper:
            for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1")):
                helper.setenv(name, value)
            with lock(folder):
                assert (folder / LOCK).is_file()
        assert (folder / LOCK).is_file() and not capsys.readouterr().out
        threading.Timer(1, holder.kill).start()
        with lock(folder, wait="waiting for it"):
            (folder / "kept").touch()
    finally:
        holder.kill()
        holder.communicate()
    assert capsys.readouterr().out == "waiting for it\n"
    assert [file.name for file in folder.iterdir()] == ["kept"]


def test_an_empty_folder_is_not_left_behind(tmp_path):
    with lock(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a" / "b").exists()


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="no file"):
            write_file(place, "text")
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"] and not (tmp_path / "pipe").is_file()
