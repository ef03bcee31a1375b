"""A privacy accountant: how many bits about each person have left a device, and when it is enough.

One file on the device, with a lock, whatever stores are written. It is charged before anything leaves: a
crash may cost bits that were never sent, and never sends bits that were not counted.
"""

import hmac
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from crafter_pl.errors import UserError
from crafter_pl.files import read_json, to_json, write_file

VERSION = 1
BUDGET = 100.0  # bits a person, by default: twenty pictures of five bits


@dataclass(frozen=True)
class Charge:
    """What the accountant says of one picture.

    Attributes:
        message: the one that was drawn when this picture was sent before; None: it never was.
        spent: bits that have left about the person, this picture's included.
    """

    message: int | None
    spent: float


class Accountant:
    """The bits that have left a device about each person.

    The same picture twice gives the same message, or averaging would take the coins off: it is known by a
    keyed hash of its pixels, and costs nothing the second time.

    Args:
        file: where the account is kept, mode 0600; made with its folder if it is not there.
        budget: bits about one person, above 0; beyond it the accountant refuses.

    Raises:
        UserError: the budget is not above 0.
    """

    def __init__(self, file: str | Path, budget: float = BUDGET) -> None:
        if not budget > 0:
            raise UserError(f"the privacy budget is {budget} bits; give a number above 0")
        self.file, self.budget = Path(file), budget

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """The account, to be read and changed by nobody else meanwhile.

        Raises:
            UserError: it is damaged, or of another version.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock", mode=0o600):
            account: dict[str, Any]
            if self.file.is_file():
                way = "the bits that have left cannot be known: restore the file, or change the encoder"
                account = read_json(self.file, way)
                known = isinstance(account, dict) and account.get("version") == VERSION
                if not known or not isinstance(account.get("people"), dict):
                    raise UserError(f"{self.file} is no account of version {VERSION}: {way}")
            else:
                account = {"version": VERSION, "key": secrets.token_hex(32), "people": {}, "sent": {}}
            yield account

    def charge(self, person: str, picture: bytes, bits: float, message: int) -> Charge:
        """Charge a message before it leaves.

        Args:
            person: by whatever name the device knows them.
            picture: its pixels, and all that the message depends on besides coins.
            bits: of the channel.
            message: to be sent, if the picture never was.

        Raises:
            UserError: the person's budget would be exceeded; nothing is charged then.
        """
        with self._open() as account:
            name = hmac.new(bytes.fromhex(account["key"]), picture, sha256).hexdigest()
            spent = float(account["people"].get(person, 0.0))
            if (before := account["sent"].get(f"{person} {name}")) is not None:
                return Charge(int(before), spent)
            if spent + bits > self.budget + 1e-9:
                raise UserError(
                    f"about {person} {spent:g} bits have left this device, and {bits:g} more would exceed "
                    f"the budget of {self.budget:g} ({self.file}): send no more pictures of this person, or "
                    "give a larger budget"
                )
            account["people"][person] = spent + bits
            account["sent"][f"{person} {name}"] = message
            write_file(self.file, to_json(account), 0o600)  # on the disk before anything leaves
            return Charge(None, spent + bits)

    def spent(self) -> dict[str, float]:
        """Bits that have left, by person."""
        with self._open() as account:
            return json.loads(json.dumps(account["people"]))
