"""`protect`: photographs to a feature store, one by one, whatever is among them."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crafter_pl.data.pictures import MAX_PIXELS, Refused, shown
from crafter_pl.data.store import MANIFEST, shard_done, shard_name
from crafter_pl.data.transport import Transport
from crafter_pl.data.writer import StoreWriter
from crafter_pl.defenses import Certified
from crafter_pl.edge.accountant import OWNER
from crafter_pl.edge.faces import NO_FACE, cut
from crafter_pl.edge.ledger import Face, Ledger, Photo, private_file
from crafter_pl.edge.photos import open_photo, photographs
from crafter_pl.edge.protector import People, Protector
from crafter_pl.errors import UserError
from crafter_pl.files import lock
from crafter_pl.limits import AboveZero
from crafter_pl.progress import Steps

_SAVE_EVERY = 2.0  # seconds of looking for faces that a kill may cost


def protect_photos(
    photos: list[str],
    out: str,
    checkpoint: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    protect: dict[str, Any] | None = None,
    crafter: bool = False,
    person: str = OWNER,
    people: People = "one",
    budget: AboveZero | None = None,
    account: str | None = None,
    transport: Transport = "float32",
    faces: Literal["largest", "all", "none"] = "largest",
    margin: float = 0.0,
    min_confidence: float = 0.9,
    min_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    no_face: Literal["skip", "error"] = "skip",
    batch_size: int = 16,
    device: str = "auto",
) -> Path:
    """Find the faces in photographs, protect their features, and write a feature store.

    A photograph that cannot be used is reported and left out; the others go on. Interrupted, the same command
    goes on where it stopped. What must stay on the device, the seed and which feature is which photograph, is
    in OUT.private.json beside the store, and not in it.

    Args:
        photos: files, and folders that are searched with all below them.
        out: folder of the feature store.
        checkpoint: of a defence of any kind (default: RUNS_DIR/EXPERIMENT/certified/checkpoints/best.ckpt).
        experiment: folder under runs_dir where the default checkpoint is looked for.
        runs_dir: folder of all runs.
        protect: the defence's own options (`--protect.beta 0.5`); its seed is drawn from the system's entropy
            if not given.
        crafter: a Crafter's checkpoint protects by Crafter itself, not by the cloud's answers alone, which
            hold better against attackers who adapt.
        person: whom the photographs show, by any name; a certified defence charges this person.
        people: one, or folders: each folder is one person's, by its name.
        budget: bits about one person at which a certified defence refuses (default: 100).
        account: file of the privacy account, one for a device (default: crafter_pl/account.json in
            XDG_STATE_HOME or ~/.local/state).
        transport: how the features travel: float16 and int8 take a half and about a quarter of the bytes.
        faces: of each photograph the largest face, all, or none: it is a face already.
        margin: how much more around the face than in the encoder's training pictures, on each side, as a
            share of the crop's side.
        min_confidence: of the face detector, from 0 to 1.
        min_size: smaller faces and pictures, in pixels, are left out.
        max_pixels: larger photographs are left out, before they are decoded.
        no_face: skip a photograph without a face, or stop there (error).
        batch_size: faces crafted together, and so a shard of the store.
        device: auto, cpu, cuda, cuda:1, ...

    Returns:
        The store.

    Raises:
        UserError: no face at all could be protected, what is in OUT already was begun otherwise, or the
            person's privacy budget is spent.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; give at least 1")
    given = Path(
        checkpoint or Path(runs_dir) / experiment / Certified.stage_name / "checkpoints" / "best.ckpt"
    )
    protector = Protector.load(
        given,
        device=device,
        faces=faces,
        margin=margin,
        min_confidence=min_confidence,
        min_size=min_size,
        max_pixels=max_pixels,
        crafter=crafter,
        account=account,
        budget=budget,
        person=person,
        people=people,
        **{"transport": transport, **(protect or {})},
    )
    if protector.defense.trained_on[1] == "synthetic":
        print(f"note: {given} was trained on faces drawn by code, not on photographs", flush=True)
    made = protector.manifest()
    looks: dict[str, Any] = {
        "faces": faces,
        "margin": margin,
        "min_confidence": min_confidence,
        "min_size": min_size,
        "max_pixels": max_pixels,
        "batch_size": batch_size,
    }
    store = Path(os.path.realpath(os.path.expanduser(out)))
    with lock(store, doing="writing", other="--out"):
        flat = {key: value for key, value in made.items() if key != "settings"}
        flat |= {f"protect.{key}": value for key, value in made["settings"].items()}
        ledger = Ledger(store, {**looks, **flat}, (protect or {}).get("seed"))
        protector.use(ledger.seed)
        listed, refused = photographs(photos, {store, private_file(store)})
        if not listed and not refused:
            raise UserError("no photographs given: python -m crafter_pl protect PHOTOS... --out STORE")
        for path, why in refused:
            print(f"skipped {shown(path)}: {why}", flush=True)
        if not ledger.planned:
            _look(protector, ledger, listed, stop=no_face == "error")
            ledger.plan(listed)
        elif new := [path for path in listed if path not in ledger.photos]:
            raise UserError(
                f"{len(new)} of the photographs are new since {store} was begun, {shown(new[0])} first: "
                "protect them into another --out, or give the old ones alone"
            )
        writer = StoreWriter(store, made)
        shards = _craft(protector, ledger, batch_size, writer)
        counts = ledger.counts()
        counts.update(why.kind for _, why in refused)
        left_out = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        if not shards:
            ledger.file.unlink()
            raise UserError(f"no face could be protected (skipped: {left_out}); nothing was written")
        if writer.written or not (store / MANIFEST).is_file():
            text = json.dumps([made, looks], sort_keys=True)  # not the seed, which a hash would betray
            # What it took says something of the pictures: certified features travel without.
            cost = {} if protector.accountant else {"cost": writer.cost}
            writer.finish(shards, fingerprint=hashlib.sha256(text.encode()).hexdigest(), **cost)
        else:
            print(f"{shown(out)} is complete already", flush=True)
    of = sum(any(face.lost is None for face in photo.faces) for photo in ledger.photos.values())
    print(
        f"protected {sum(shards.values())} faces of {of} photographs in {shown(out)}; skipped: "
        f"{left_out or 'none'}\nkeep {shown(ledger.file)} on this device: it holds the seed, and which "
        "feature is which photograph",
        flush=True,
    )
    return Path(out)


def _look(protector: Protector, ledger: Ledger, listed: list[str], stop: bool) -> None:
    """The first pass: opens each photograph and finds its faces.

    Raises:
        UserError: there is none in one of them, and `stop`.
    """
    steps = Steps("looking for faces", len(listed), unit="photographs")
    saved = time.monotonic()
    try:
        for path in listed:
            known = path in ledger.photos
            if not known:
                ledger.photos[path] = _examine(protector, path, steps)
            if stop and ledger.photos[path].skipped == NO_FACE:
                raise UserError(f"{shown(path)}: {NO_FACE}; remove it, or give --no_face skip")
            steps.step(done_before=known)
            if time.monotonic() - saved > _SAVE_EVERY:
                ledger.save()
                saved = time.monotonic()
    finally:
        steps.close()
        ledger.save()


def _examine(protector: Protector, path: str, steps: Steps) -> Photo:
    """What is to be remembered of one photograph; says what was odd."""
    photo = Photo(_stamp(path))
    try:
        picture, notes = open_photo(Path(path), protector.max_pixels)
        photo.faces = [Face(place) for place in protector.finder.find(picture)]
        for note in notes:
            steps.say(f"note: {shown(path)}: {note}")
    except Refused as refused:
        photo.skipped = refused.kind
        steps.say(f"skipped {shown(path)}: {refused}")
    return photo


def _stamp(path: str) -> list[int]:
    """Size and time of change of a file; nothing where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _craft(protector: Protector, ledger: Ledger, batch_size: int, writer: StoreWriter) -> dict[int, int]:
    """The second pass: protects the faces batch by batch and writes the shards that are missing.

    Returns:
        The shards' numbers with their sizes.
    """
    batches = ledger.batches(batch_size)
    shards: dict[int, int] = {}
    done = [shard_done(writer.folder, number, _index(batch)) for number, batch in enumerate(batches)]
    missing = [pair for batch, there in zip(batches, done, strict=True) if not there for pair in batch]
    protector.afford(_faces(protector, missing))
    with closing(Steps("protecting", sum(map(len, batches)), unit="faces")) as steps:
        for number, batch in enumerate(batches):
            index = _index(batch)
            there = len(index) > 0 and done[number]
            if not there:
                began = time.perf_counter()
                index, features = _protect(protector, ledger, batch, steps)
                if len(index):
                    writer.write(number, features, index, time.perf_counter() - began)
            if len(index):
                shards[number] = len(index)
            steps.step(len(batch), done_before=there)
    for file in ledger.store.glob("shard-*.safetensors"):
        if file.name not in map(shard_name, shards):  # all its faces are lost
            file.unlink()
    return shards


def _faces(protector: Protector, batch: list[tuple[str, Face]]) -> Iterator[tuple[str, Tensor]]:
    """Whose and cut, those that are not lost; what cannot be opened is left for `_protect` to say."""
    for path, face in batch:
        if face.lost is None:
            with suppress(Refused):
                yield protector.whose(path), _cut(protector, path, face)


def _cut(protector: Protector, path: str, face: Face) -> Tensor:
    """A face, uint8 `(3, S, S)`; raises Refused where its photograph cannot be opened any more."""
    return cut(open_photo(Path(path), protector.max_pixels)[0], face.place, protector.image_size)


def _index(batch: list[tuple[str, Face]]) -> Tensor:
    """The indices of a batch's faces that are not lost, int64 `(n,)`."""
    return torch.tensor([face.index for _, face in batch if face.lost is None], dtype=torch.int64)


def _protect(
    protector: Protector, ledger: Ledger, batch: list[tuple[str, Face]], steps: Steps
) -> tuple[Tensor, Tensor]:
    """The indices of a batch's faces and their features; faces that cannot be protected are lost."""
    there = [(path, face) for path, face in batch if face.lost is None]

    def lose(path: str, face: Face, kind: str, why: str) -> None:
        face.lost = kind
        steps.say(f"skipped {shown(path)}: {why}")

    pictures, people = [], []
    for path, face in there:
        try:
            if _stamp(path) != ledger.photos[path].stamp:
                raise Refused("gone or changed", "since its face was found")
            pictures.append(_cut(protector, path, face))
            people.append(protector.whose(path))
        except Refused as refused:
            lose(path, face, refused.kind, str(refused))
    index = _index(there)
    features = torch.empty(0, *protector.feature_shape)
    if pictures:
        try:
            features = protector.craft(torch.stack(pictures), index, people)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"no memory left on the device for {len(index)} faces: give a smaller --batch_size and "
                "another --out"
            ) from error
        finite = features.flatten(1).isfinite().all(1)
        for path, face in there:
            if face.index in index[~finite].tolist():
                lose(path, face, "not protected", "crafting gave no finite feature")
        index, features = index[finite], features[finite]
    if len(index) < len(there):
        ledger.save()  # before the shard: a resumed run must expect the same faces in it
    return index, features
