"""A privacy accountant: how many bits about each person have left a device, and when it is enough.

One file on the device, with a lock, whatever stores are written. It is charged before anything leaves: a
crash may cost bits that were never sent, and never sends bits that were not counted.
"""

import hmac
import json
import math
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsFloat

from filelock import FileLock

from crafter_pl.certificate import Certificate
from crafter_pl.data.pictures import shown
from crafter_pl.errors import UserError
from crafter_pl.files import expand, ordinary, read_json, to_json, write_file

VERSION = 1
_WAY = (
    "what has left cannot be known: bring the file back, or delete what is there of it and its .begun, which "
    "begins at 0 and does not undo what has left"
)
_NOTHING = math.log2(10_000)  # bits from which on the bound among so many people is 1
OWNER = "owner"  # who is charged where nobody is named: the device's
BUDGET = 100.0  # bits a person, by default: twenty pictures of five bits


def account_file() -> Path:
    """Where a device keeps its account unless told otherwise: XDG_STATE_HOME/crafter_pl/account.json.

    A relative XDG_STATE_HOME counts for nothing, as its specification says: every folder would have its own.

    Raises:
        UserError: whoever runs this has no home folder.
    """
    home = os.environ.get("XDG_STATE_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.local/state")
    if not os.path.isabs(home):
        raise UserError("there is no home folder to keep the account in: give --account FILE")
    return Path(home) / "crafter_pl" / "account.json"


@dataclass(frozen=True)
class Charge:
    """What the accountant says of some pictures.

    Attributes:
        messages: to be sent; of a picture that was sent before, the one that it was sent as.
        spent: bits that have left about the person, these pictures' included.
    """

    messages: list[int]
    spent: float


def named_person(name: str) -> str:
    """A person's name as accounts have it: in one Unicode normal form, without space around it.

    Raises:
        UserError: it is empty, or no text.
    """
    made = unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else ""
    if not made:
        raise UserError(f"the person is {name!r}: give a name (--person)")
    return made


def _sound(account: Any) -> bool:  # noqa: ANN401 (whatever JSON holds)
    """Whether this is what `Accountant` writes."""
    if not isinstance(account, dict) or account.get("version") != VERSION:
        return False
    key, people, sent = (account.get(name) for name in ("key", "people", "sent"))
    return (
        isinstance(key, str)
        and re.fullmatch("[0-9a-f]{64}", key) is not None
        and isinstance(people, dict)
        and all(type(bits) in (int, float) and 0 <= bits < sys.float_info.max for bits in people.values())
        and isinstance(sent, dict)
        and all(
            isinstance(one, dict)
            and type(one.get("message")) is int
            and one["message"] >= 0
            and isinstance(one.get("people"), list)
            for one in sent.values()
        )
    )


class Accountant:
    """The bits that have left a device about each person.

    The same picture twice gives the same message, or averaging would take the coins off: it is known by a
    keyed hash of its pixels, and costs nothing the second time.

    Args:
        file: where the account is kept, mode 0600.
        budget: bits about one person, above 0; beyond it the accountant refuses.
        begin: make the file where it is not there. One that was lost does not begin anew by itself, since
            nobody would know what has left: ``FILE.begun`` beside it says that there was one.

    Raises:
        UserError: the budget is not above 0, or the account is lost, or no file.
    """

    def __init__(self, file: str | Path, budget: float = BUDGET, begin: bool = False) -> None:
        if isinstance(budget, bool) or not isinstance(budget, SupportsFloat) or not float(budget) > 0:
            raise UserError(f"the privacy budget is {budget!r} bits; give a number above 0")
        # One account and one lock, whatever link it was reached by.
        self.file, self.budget = ordinary(os.path.realpath(expand(str(file)))), float(budget)
        begun = self.file.with_name(f"{self.file.name}.begun")
        if begin and not (self.file.is_file() and begun.is_file()):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.file}.lock", mode=0o600):
                if not self.file.is_file():
                    if begun.exists():
                        raise UserError(f"the account {self.file} was begun, and is gone: {_WAY}")
                    self._write({"version": VERSION, "key": secrets.token_hex(32), "people": {}, "sent": {}})
                begun.touch()  # one that is lost does not begin anew by itself

    def _write(self, account: dict[str, Any]) -> None:
        """On the disk, its name too, before anything leaves."""
        write_file(self.file, to_json(account), 0o600)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """The account, to be read and changed by nobody else meanwhile.

        Raises:
            UserError: it is lost, damaged, or of another version.
        """
        if not self.file.is_file():
            raise UserError(f"there is no account {self.file}: {_WAY}")
        with FileLock(f"{self.file}.lock", mode=0o600):
            account: dict[str, Any] = read_json(self.file, _WAY)
            if not _sound(account):
                raise UserError(f"{self.file} is no account of version {VERSION}: {_WAY}")
            yield account

    def charge(
        self, person: str, pictures: Sequence[bytes], bits: float, messages: Sequence[int], words: int = 2**63
    ) -> Charge:
        """Charge messages before they leave: all of them, or none.

        Args:
            person: by whatever name the device knows them.
            pictures: of each its pixels, and all that the message depends on besides coins.
            bits: of the channel.
            messages: to be sent of each, if the picture never was.
            words: that the channel has; no message that was sent can be another.

        Raises:
            UserError: the budget would be exceeded, or the account is damaged; nothing is charged then.
            ValueError: the bits are no number from 0 on.
        """
        return self._charge(person, pictures, bits, messages, words, keep=True)

    def afford(self, person: str, pictures: Sequence[bytes], bits: float) -> float:
        """Refuse if so many messages would exceed the budget, see `charge`; else what `charge` will spend."""
        return self._charge(person, pictures, bits, [0] * len(pictures), 2**63, keep=False).spent

    def _charge(
        self,
        person: str,
        pictures: Sequence[bytes],
        bits: float,
        messages: Sequence[int],
        words: int,
        keep: bool,
    ) -> Charge:
        if not 0 <= bits < math.inf:
            raise ValueError(f"a message of {bits} bits")
        person = named_person(person)
        with self._open() as account:
            key, sent, made = bytes.fromhex(account["key"]), account["sent"], []
            before = spent = float(account["people"].get(person, 0.0))
            for picture, message in zip(pictures, messages, strict=True):
                # One message, whosever it is said to be.
                entry = sent.setdefault(
                    hmac.new(key, picture, sha256).hexdigest(), {"message": int(message), "people": []}
                )
                made.append(int(entry["message"]))
                if made[-1] >= words:
                    what = f"that message {made[-1]} of {words} was sent"
                    raise UserError(f"the account {self.file} says {what}: {_WAY}")
                if person not in entry["people"]:
                    entry["people"].append(person)
                    spent += bits
            if spent > before and spent > self.budget + 1e-9:  # what has left already costs nothing
                more = f"{before:g} bits have left this device, and {spent - before:g} more would exceed"
                raise UserError(
                    f"about {shown(person)} {more} the budget of {self.budget:g} (the account {self.file})\n"
                    "  pictures of several people: --person NAME for those of each, or --people folders,\n"
                    "  where each folder is one person's\n"
                    "  all of one person: send fewer, or give a larger --budget; but bits add up, and from "
                    f"{_NOTHING:.1f} on\n  the proof says nothing about one of 10,000 people"
                )
            if keep and spent > before:
                account["people"][person] = spent
                self._write(account)
            return Charge(made, spent)

    def spent(self) -> dict[str, float]:
        """Bits that have left, by person."""
        with self._open() as account:
            return json.loads(json.dumps(account["people"]))


def says(bits: float) -> str:
    """What the proof says of so many bits about one person."""
    bound = Certificate(bits).naming(10_000)
    if bound >= 1:
        return "the proof says nothing about one of 10,000 people"
    return f"one guess names one of 10,000 equally likely people in at most {bound:.2%}, on average"
