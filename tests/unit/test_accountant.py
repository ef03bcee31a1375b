"""The accountant: charged before anything leaves, by any number of processes, and never forgotten."""

import json
import multiprocessing
import os
import stat

import numpy as np
import pytest

from crafter_pl.edge.accountant import Accountant, Charge, account_file
from crafter_pl.errors import UserError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "device" / "account.json"


def test_bits_add_up_by_person_until_the_budget_is_spent(file):
    accountant = Accountant(file, budget=12, begin=True)
    assert accountant.charge("Ann", [b"1"], 5, [3]) == Charge([3], 5)
    assert accountant.charge("Ann", [b"2"], 5, [4]) == Charge([4], 10)
    with pytest.raises(UserError, match="Ann 10 bits"):
        accountant.charge("Ann", [b"3"], 5, [1])
    assert accountant.charge("Ann", [b"3"], 2, [1]).spent == 12
    assert accountant.charge("Bob", [b"4"], 5, [3]) == Charge([3], 5), "another person's picture"
    assert Accountant(file).spent() == {"Ann": 12, "Bob": 5}


def test_the_same_picture_has_the_same_message_and_costs_nothing(file):
    accountant = Accountant(file, budget=5, begin=True)
    accountant.charge("Ann", [b"1"], 5, [3])
    assert accountant.charge("Ann", [b"1"], 5, [9]) == Charge([3], 5)
    assert accountant.charge("Bob", [b"1"], 5, [9]) == Charge([3], 5), (
        "by another name it is no other message"
    )
    both = accountant.charge("Dan", [b"3", b"3"], 5, [7, 8])
    assert both == Charge([7, 7], 5), "twice in one batch, too"
    with pytest.raises(UserError, match="budget"):
        accountant.charge("Eve", [b"5", b"6"], 5, [1, 2])
    assert "Eve" not in accountant.spent(), "all or none"
    for bits in (-5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="bits"):
            accountant.charge("Cy", [b"2"], bits, [1])


def test_what_has_left_already_is_sent_again_under_a_lower_budget(file):
    Accountant(file, begin=True).charge("Ann", [b"1", b"2"], 5, [3, 4])
    less = Accountant(file, budget=np.float32(5))
    assert less.afford("Ann", [b"1"], 5) == 10 and less.charge("Ann", [b"1"], 5, [9]) == Charge([3], 10)
    with pytest.raises(UserError, match="budget of 5"):
        less.charge("Ann", [b"1", b"3"], 5, [9, 9])


def test_a_message_that_the_channel_does_not_have_is_damage(file):
    accountant = Accountant(file, begin=True)
    accountant.charge("Ann", [b"1"], 5, [32])
    before = file.read_text()
    with pytest.raises(UserError, match="message 32 of 32"):
        accountant.charge("Ann", [b"2", b"1"], 5, [3, 3], words=32)
    assert file.read_text() == before


def test_an_account_that_was_lost_does_not_begin_anew(file):
    with pytest.raises(UserError, match="cannot be known"):
        Accountant(file).charge("Ann", [b"1"], 5, [3])
    Accountant(file, begin=True).charge("Ann", [b"1"], 5, [3])
    assert Accountant(file, begin=True).spent() == {"Ann": 5}, "one that is there goes on"


def test_one_that_was_begun_and_is_gone_refuses(file):
    Accountant(file, begin=True).charge("Ann", [b"1"], 5, [3])
    file.unlink()
    with pytest.raises(UserError, match="was begun, and is gone"):
        Accountant(file, begin=True)
    file.with_name("account.json.begun").unlink()  # as docs/edge.md says
    assert Accountant(file, begin=True).spent() == {}


def test_a_link_leads_to_the_same_account(file, tmp_path):
    Accountant(file, begin=True).charge("Ann", [b"1"], 5, [3])
    (tmp_path / "link.json").symlink_to(file)
    Accountant(tmp_path / "link.json", begin=True).charge("Ann", [b"2"], 5, [3])
    assert Accountant(file).spent() == {"Ann": 10}


def test_a_person_has_one_name(file):
    accountant = Accountant(file, begin=True)
    for name, picture in (("Ren\u00e9", b"1"), ("Rene\u0301 ", b"2")):
        accountant.charge(name, [picture], 5, [3])
    assert accountant.spent() == {"Ren\u00e9": 10}
    for name in ("", " ", 5, None):
        with pytest.raises(UserError, match="give a name"):
            accountant.charge(name, [b"3"], 5, [3])


def test_what_is_afforded_is_not_charged(file):
    accountant = Accountant(file, 12, begin=True)
    assert accountant.afford("Ann", [b"1", b"2"], 5) == 10
    with pytest.raises(UserError, match="budget"):
        accountant.afford("Ann", [b"1", b"2", b"3"], 5)
    assert accountant.spent() == {}


def test_the_file_says_nothing_of_pictures(file):
    Accountant(file, begin=True).charge("Ann", [b"pixels"], 5, [3])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = file.with_name("other.json")
    Accountant(other, begin=True).charge("Ann", [b"pixels"], 5, [3])
    one, two = (json.loads(path.read_text()) for path in (file, other))
    assert one["sent"].keys() != two["sent"].keys(), "the hash is keyed by the device"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 9, "people": {}}',
        '{"version": 1}',
        '{"version": 1, "key": "no hex", "people": {}, "sent": {}}',
        '{"version": 1, "key": "%s", "people": {"Ann": -5}, "sent": {}}' % ("0" * 64),
        '{"version": 1, "key": "%s", "people": {"Ann": 1e999}, "sent": {}}' % ("0" * 64),
        json.dumps({"version": 1, "key": "0" * 64, "people": {"Ann": 10**400}, "sent": {}}),
        '{"version": 1, "key": "%s", "people": {}, "sent": []}' % ("0" * 64),
        '{"version": 1, "key": "%s", "people": {}, "sent": {"a": {"message": -1, "people": []}}}'
        % ("0" * 64),
    ],
)
def test_an_account_that_is_lost_refuses(file, content):
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match=r"account\.json"):
        Accountant(file).charge("Ann", [b"1"], 5, [3])
    assert file.read_text() == content, "and is left as it is"
    with pytest.raises(UserError, match="budget"):
        Accountant(file, 0)


def charge(file, first):
    for number in range(first, first + 10):
        Accountant(file, 1000, begin=True).charge("Ann", [str(number).encode()], 1, [0])


def test_processes_charge_one_account(file):
    context = multiprocessing.get_context("fork")
    made = [context.Process(target=charge, args=(file, 10 * k)) for k in range(4)]
    for process in made:
        process.start()
    for process in made:
        process.join()
    assert [process.exitcode for process in made] == [0] * 4
    assert Accountant(file).spent() == {"Ann": 40}


def test_what_cannot_be_written_is_not_sent(file, monkeypatch):
    """A charge that fails is an error, so that nothing leaves; the account is as before."""
    accountant = Accountant(file, begin=True)
    accountant.charge("Ann", [b"1"], 5, [3])

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("crafter_pl.edge.accountant.write_file", full)
    with pytest.raises(OSError, match="no space"):
        accountant.charge("Ann", [b"2"], 5, [3])
    monkeypatch.undo()
    assert accountant.spent() == {"Ann": 5}


def test_one_that_was_moved_here_does_not_begin_anew_either(file):
    Accountant(file, begin=True).charge("Ann", [b"1"], 5, [3])
    moved = file.with_name("moved.json")
    file.rename(moved)
    assert Accountant(moved, begin=True).spent() == {"Ann": 5}
    moved.unlink()
    with pytest.raises(UserError, match="was begun, and is gone"):
        Accountant(moved, begin=True)


def test_what_is_no_file_is_left_as_it_is(file, tmp_path):
    file.parent.mkdir()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no file"):
        Accountant(file, begin=True)
    assert stat.S_ISFIFO(file.stat().st_mode) and [*file.parent.iterdir()] == [file]


def test_who_has_no_home_is_told(monkeypatch):
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no user has this number
    with pytest.raises(UserError, match="--account"):
        account_file()
