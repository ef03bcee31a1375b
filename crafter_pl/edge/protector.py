"""A trained defence and all that stands before it on the device: `Protector.load(path).protect(image)`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crafter_pl.data.framing import OFFICIAL
from crafter_pl.data.pictures import MAX_PIXELS, PILLOWS_LIMIT, Refused, shown
from crafter_pl.data.provenance import seedless
from crafter_pl.data.store import PHOTOGRAPHS
from crafter_pl.defenses import (
    Answers,
    Certified,
    Crafter,
    CrafterGenerator,
    CrafterVariant,
    Defense,
    load_defense,
)
from crafter_pl.defenses.options import names
from crafter_pl.device import pick_device
from crafter_pl.edge.accountant import BUDGET, OWNER, Accountant, account_file, named_person, says
from crafter_pl.edge.faces import Finder, cut
from crafter_pl.edge.photos import open_photo, to_picture
from crafter_pl.errors import UserError

People = Literal["one", "folders"]
_ANSWERS = (
    "what leaves depends on the picture through the cloud's answers alone; whoever has a gallery of suspects "
    "reads about a third of the people from those, or more"
)
_MOVED = "an attacker who has learnt from public faces that it has crafted names many times as many people"
_OTHER = "what an attacker who has learnt from faces that it has protected gets stands in docs/defenses.md"


class Protector:
    """Turns photographs into features that may leave the device.

    Attributes:
        defense: the trained defence.
        options: how it is to protect.
        finder: what finds the faces.
        seed: of the crafting noise, which is keyed by (seed, running number of the face): secret, since who
            knows it can undo or narrow down some defences.
        feature_shape: `(C, h, w)` of what `protect` returns.
        accountant: what a certified defence charges before anything leaves; None with others.
        person: whom it charges: by default all pictures are taken to be of one person, the device's owner.
        people: `folders`: the folder that a photograph lies in is the person, by its name.
    """

    accountant: Accountant | None = None
    person = OWNER
    people: People = "one"

    def __init__(
        self,
        defense: Defense[Any],
        finder: Finder,
        max_pixels: int = MAX_PIXELS,
        **protect: Any,  # noqa: ANN401 (numbers and names)
    ) -> None:
        if not 1 <= max_pixels <= PILLOWS_LIMIT:
            raise UserError(f"--max_pixels {max_pixels}: give 1 to {PILLOWS_LIMIT}")
        self.defense, self.finder, self.max_pixels = defense, finder, max_pixels
        seed = protect.pop("seed", None)
        if seed is not None and type(seed) is not int:
            raise UserError(f"--protect.seed {seed!r}: give a whole number")
        self.options = defense.options(**protect)  # refuses those that it does not have
        self.use(secrets.randbits(63) if seed is None else seed)
        self.feature_shape: tuple[int, ...] = defense.task.feature_shape
        self._count = 0

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        faces: str = "largest",
        margin: float = 0.0,
        min_confidence: float = 0.9,
        min_size: int = 32,
        max_pixels: int = MAX_PIXELS,
        crafter: bool = False,
        account: str | Path | None = None,
        budget: float | None = None,
        person: str = OWNER,
        people: People = "one",
        **protect: Any,  # noqa: ANN401 (numbers and names)
    ) -> Protector:
        """Load a defence of any kind from its checkpoint, and say in one line what it leaves.

        A Crafter's checkpoint protects by `Answers` unless told otherwise, which holds better against
        attackers who adapt.

        Args:
            checkpoint: of the defence; the upstream checkpoints that it names must be where they were, or in
                the same folder of runs.
            device: auto, cpu, cuda, cuda:1, ...
            faces: `largest` face of a picture, `all`, or `none` where the picture is a face already.
            margin: how much more around the face than in the encoder's training pictures, see `Finder`.
            min_confidence: of the face detector.
            min_size: smallest face, in pixels of the picture.
            max_pixels: larger photographs are refused.
            crafter: a Crafter's checkpoint protects by Crafter itself.
            account: file of the privacy account of a certified defence, one for a device (default:
                `account_file`); begun where it is not there.
            budget: bits about one person at which a certified defence refuses (default: `BUDGET`).
            person: whom the pictures show, by any name; a certified defence charges this one.
            people: `folders`: whom they show, the folder's name says.
            protect: the defence's options, what `predict` has as `--protect.*`; its `seed` is from the
                system's entropy if not given.

        Raises:
            UserError: no such checkpoint or device, an option that this defence does not have, or an account,
                a budget or a person for one that charges nothing.
        """
        from crafter_pl.plugins import import_stages

        import_stages()
        device = pick_device(device)
        defense = load_defense(checkpoint)
        defense = Answers.of(defense) if isinstance(defense, Crafter) and not crafter else defense
        given = {"account": account, "budget": budget, "person": None if person == OWNER else person}
        given |= {"people": people} if people != "one" else {}
        if not isinstance(defense, Certified) and any(one is not None for one in given.values()):
            named = ", ".join(name for name, one in given.items() if one is not None)
            raise UserError(
                f"{checkpoint} is of {defense.stage_name}, which has no bits to charge: leave out {named}, "
                "or give the checkpoint of a certified defence"
            )
        if person != OWNER and "people" in given:
            raise UserError("--person and --people folders: give one of them")
        if (frame := defense.task.frame) is None and faces != "none":
            print(
                f"note: {checkpoint} does not know how its training pictures frame a face: cut as CelebA's",
                flush=True,
            )
        finder = Finder(faces, min_confidence, min_size, margin, frame or OFFICIAL, device)
        protector = cls(defense.to(device), finder, max_pixels, **protect)
        if isinstance(defense, Certified):
            limit = BUDGET if budget is None else budget
            protector.people = people
            protector.certify(Accountant(account or account_file(), limit, begin=True), person)
            return protector
        leaves = _MOVED if isinstance(defense, Crafter | CrafterVariant) else _OTHER
        leaves = _ANSWERS if isinstance(defense, Answers | CrafterGenerator) else leaves
        print(f"note: protected by {defense.stage_name}: {leaves}", flush=True)
        return protector

    def certify(self, accountant: Accountant, person: str) -> None:
        """Coins from the system's entropy, and charged; says what a certified defence lets through."""
        assert isinstance(self.defense, Certified)
        self.accountant, self.person = accountant, named_person(person)
        self._digest = self.defense.weights_hash()
        bits, spent = self.defense.certificate(self.options).bits, accountant.spent().get(self.person, 0.0)
        limit, one, who = f"{accountant.budget:g} bits", says(spent + bits), shown(self.person)
        left = f"{spent:g} of {limit} about {who} have left this device; with the next picture {one}"
        if self.people == "folders":
            left = f"at most {limit} about a person, who has a folder; by a picture {says(bits)}"
        text = f"{bits:.2f} bits a picture about {self.defense.about}; {left} (the account {accountant.file})"
        print(f"note: protected by {self.defense.stage_name}: {text}", flush=True)

    def whose(self, photo: str | Path | None) -> str:
        """Who is charged for a photograph, or for pixels."""
        if self.people != "folders" or not photo:
            return self.person
        folder = Path(os.path.abspath(photo)).parent
        if not folder.name.strip():
            raise UserError(f"the folder {shown(str(folder))!r} is to be a person's name: rename it")
        return folder.name

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the encoder takes."""
        return int(self.defense.task.hparams["image_size"])

    def use(self, seed: int) -> None:
        """Key the noise by this seed, if the defence draws any."""
        self.seed = seed
        if "seed" in names(type(self.options)):
            self.options = replace(self.options, **{"seed": seed})

    def manifest(self) -> dict[str, Any]:
        """What a store of photographs says of what made it: like `predict`'s, but without the seed."""
        made = self.defense.manifest("", PHOTOGRAPHS, self.options)
        settings = seedless(made["settings"])
        if self.accountant is not None:
            settings |= {"draws": "system"}
        return {**seedless(made), "settings": settings}

    def protect(self, image: Any) -> Tensor:  # noqa: ANN401 (see Args)
        """The protected features of the faces in one picture.

        Each call draws noise of its own: two calls with one picture give different features wherever the
        defence draws any.

        Args:
            image: a path; a PIL image; or pixels, uint8 or float in [0, 1], `(H, W, 3)` or `(3, H, W)`, as an
                array or tensor.

        Returns:
            Float32 `(K, C, h, w)` on the CPU: one feature, or with `faces="all"` one a face, the largest
            first, of a certified defence in random order. `transport` is for stores: `data.transport.encode`
            codes them for a wire of your own.

        Raises:
            UserError: the picture cannot be read, there is no face in it, or the person's privacy budget is
                spent.
        """
        file = Path(image) if isinstance(image, (str, Path)) else None
        try:
            picture = to_picture(image) if file is None else open_photo(file, self.max_pixels)[0]
            places = self.finder.find(picture)
        except Refused as refused:
            raise UserError(f"{'the image given' if file is None else shown(image)}: {refused}") from refused
        faces = torch.stack([cut(picture, place, self.image_size) for place in places])
        index = torch.arange(self._count, self._count + len(faces))
        self._count += len(faces)
        made = self.craft(faces, index, [self.whose(file)] * len(faces))
        if self.accountant is not None:  # their order by size would tell something
            made = made[sorted(range(len(made)), key=lambda _: secrets.randbits(63))]
        return made

    def craft(self, faces: Tensor, index: Tensor, people: Sequence[str] | None = None) -> Tensor:
        """Protected features of cut faces.

        Args:
            faces: uint8 `(N, 3, S, S)`.
            index: int64 `(N,)`, which key the noise.
            people: who is charged for each; by default `person`.

        Returns:
            Float32 `(N, C, h, w)` on the CPU.

        Raises:
            UserError: a person's privacy budget would be exceeded; nothing is charged for them then.
        """
        device = self.defense.device
        images = faces.to(device).float().div(255)
        if isinstance(self.defense, Certified) and self.accountant is None:
            raise UserError("a certified defence sends nothing without an account: load it by Protector.load")
        with torch.inference_mode(False), torch.enable_grad():
            if self.accountant is None:
                features = self.defense.protect(images, index.to(device), self.options)
            else:
                features = self._charged(faces, images, index, people or [self.person] * len(faces))
        return features.detach().float().cpu()

    def _charged(self, faces: Tensor, images: Tensor, index: Tensor, people: Sequence[str]) -> Tensor:
        """What a certified defence sends, once its messages are charged."""
        assert isinstance(self.defense, Certified) and self.accountant is not None
        options = replace(self.options, draws="system")
        coins, z = self.defense.draw(index, options)
        messages = self.defense.messages(images, coins, options)
        bits = self.defense.certificate(options).bits
        for person in sorted(set(people)):
            rows = [row for row, one in enumerate(people) if one == person]
            known = self._known_as(faces[rows])
            words = len(self.defense.codewords)
            charge = self.accountant.charge(person, known, bits, messages[rows].tolist(), words)
            messages[rows] = torch.tensor(charge.messages, device=messages.device)
        return self.defense.sent(messages, z, options)

    def _known_as(self, faces: Tensor) -> list[bytes]:
        """What the account knows faces ``(N, 3, S, S)`` by: all that a message depends on besides coins."""
        what = f"{self._digest} {self.options.epsilon}".encode()
        return [what + face.cpu().numpy().tobytes() for face in faces]

    def afford(self, faces: Iterable[tuple[str, Tensor]]) -> None:
        """Refuse cut faces, each with who is charged, that may not be sent; say what will leave otherwise.

        Raises:
            UserError: a person's privacy budget would be exceeded.
        """
        if self.accountant is None or not isinstance(self.defense, Certified):
            return
        bits, before = self.defense.certificate(self.options).bits, self.accountant.spent()
        pictures: dict[str, list[bytes]] = {}
        for person, face in faces:
            pictures.setdefault(named_person(person), []).extend(self._known_as(face[None]))
        after = {person: self.accountant.afford(person, known, bits) for person, known in pictures.items()}
        if after:
            person = max(after, key=lambda one: after[one])
            most = ", about whom most leaves" * (len(after) > 1)
            new, bits = after[person] - before.get(person, 0.0), after[person]
            print(
                f"note: {new:g} bits more about {shown(person)}{most}: by all {bits:g} {says(bits)}",
                flush=True,
            )
