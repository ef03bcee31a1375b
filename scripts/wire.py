"""The wire between edge and cloud: a relay that keeps all bytes, and a look through these.

    python scripts/wire.py ask URL STORE --wire FILE --out ATTRIBUTES.json
    python scripts/wire.py check FILE STORE CHECKPOINT

`ask` posts the store's shards to a server (`crafter_pl serve`) and writes its answers by photograph. `check`
runs on the edge, where the photographs are; exit code 1 if any piece of a photograph's file, the
pixels of a face or a feature close to an unprotected one are among the bytes that left.
"""

import io
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from http.client import parse_headers
from pathlib import Path

import torch
from jsonargparse import auto_cli

from crafter_pl.cloud.wire import Refused, read_features
from crafter_pl.data.store import MANIFEST, read_manifest
from crafter_pl.edge.faces import cut
from crafter_pl.edge.ledger import Ledger, private_file
from crafter_pl.edge.photos import open_photo
from crafter_pl.errors import UserError
from crafter_pl.files import parse_json, read_json, to_json, write_file

PIECE = 48  # bytes: a run of a file or of pixels that long is no coincidence
CLOSE = 0.05  # of the unprotected feature's norm: what is nearer gives it away


class Relay:
    """Passes bytes on between clients and a server, and keeps those of the clients."""

    def __init__(self, host: str, port: int) -> None:
        self.target, self.sent = (host, port), bytearray()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.socket.accept()
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pass, args=(client, server, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, None), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        try:
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()


def ask(url: str, store: Path, *, wire: Path, out: Path) -> None:
    """Posts every shard; writes the answers by photograph and face.

    Args:
        url: of the server's /classify.
        store: of the protected features.
        wire: file for the bytes that leave.
        out: file for the answers.
    """
    photos = _ledger(store)["photos"]
    found = re.fullmatch(r"http://(\[[^]]+\]|[\w.-]+):(\d+)(/\w+)", url)
    if found is None:
        raise UserError(f"{url} is no address as serve prints it: http://HOST:PORT/classify")
    relay, manifest = Relay(found[1].strip("[]"), int(found[2])), read_manifest(store)
    headers = {
        "X-Encoder-SHA256": manifest["encoder_sha256"],
        "X-Defense-SHA256": manifest["defense_sha256"],
    }
    answers: dict[int, dict[str, float]] = {}
    for name in manifest["shards"]:
        body = (store / name).read_bytes()
        request = urllib.request.Request(f"http://127.0.0.1:{relay.port}{found[3]}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = parse_json(
                    answer.read(), f"the answer to {name}", "ask a server that serve has started"
                )
                answers |= {one["index"]: one["attributes"] for one in said["answers"]}
        except urllib.error.HTTPError as error:
            raise UserError(f"the server refused {name}: {error.read().decode()[:300]}") from error
        except OSError as error:
            raise UserError(f"no answer from {url} to {name} ({error}): is serve running?") from error
    write_file(wire, bytes(relay.sent))
    named = {
        path: [answers[face["index"]] for face in photo["faces"] if face["index"] in answers]
        for path, photo in photos.items()
    }
    write_file(out, to_json(named))
    print(f"{len(answers)} faces of {len(named)} photographs: {out}; {len(relay.sent)} bytes left: {wire}")


def _ledger(store: Path) -> dict:
    """The content of a finished store's ledger as it is."""
    if not (store / MANIFEST).is_file():
        raise UserError(f"{store} is no finished feature store: run protect first")
    return read_json(private_file(store), "run protect again")


def bodies(wire: bytes) -> list[bytes]:
    """The bodies of the HTTP requests on the wire."""
    stream = io.BytesIO(wire)
    found = []
    while stream.readline():  # POST ...
        found.append(stream.read(int(parse_headers(stream)["Content-Length"] or 0)))
    return found


def check(wire: bytes, store: Path, checkpoint: str) -> list[str]:
    """What went over the wire and should not have, in words; empty: nothing."""
    from crafter_pl.edge.protector import Protector  # seconds, which `ask` need not wait

    ledger = Ledger(store, _ledger(store)["settings"], None)
    protector = Protector.load(checkpoint, device="cpu", faces="none")
    leaks, faces = [], []
    for path, photo in ledger.photos.items():
        if _pieces(Path(path).read_bytes(), wire):
            leaks.append(f"a piece of the file {path}")
        if not photo.faces:
            continue
        picture = open_photo(Path(path))[0]
        own = [cut(picture, face.place, protector.image_size) for face in photo.faces]
        for face in own:
            # Pixels as they are, by rows of pixels, and as the encoder takes them.
            forms = (face, face.permute(1, 2, 0).contiguous(), face.float().div(255))
            if any(_pieces(form.numpy().tobytes(), wire) for form in forms):
                leaks.append(f"pixels of a face in {path}")
        faces += own
    requests = bodies(wire)
    sent = []
    for body in requests:
        try:
            sent.append(torch.from_numpy(read_features(body).array))
        except Refused as refused:
            leaks.append(f"a body that is no shard of features ({refused})")
    if not faces or not requests:
        raise UserError("there is nothing to check: no face, or nothing was sent")
    if not sent:
        return leaks
    with torch.no_grad():
        clean = protector.defense.task.edge(torch.stack(faces).float().div(255)).flatten(1)
    distance = torch.cdist(torch.cat(sent).flatten(1), clean) / clean.norm(dim=1)
    near = int((distance < CLOSE).any(1).sum())
    if "encoder" in protector.defense.retrains:
        print(f"note: {protector.defense.stage_name} sends the features of an encoder of its own")
    if near:
        leaks.append(f"{near} features within {CLOSE:.0%} of an unprotected one")
    print(
        f"nearest of {len(distance)} features to an unprotected one: {float(distance.min()):.2f} of its norm"
    )
    return leaks


def _pieces(secret: bytes, wire: bytes) -> bool:
    """Whether any of many pieces of the secret is on the wire."""
    starts = range(0, max(len(secret) - PIECE, 1), PIECE)
    return any(len(set(piece)) > 4 and piece in wire for piece in (secret[at : at + PIECE] for at in starts))


def look(wire: Path, store: Path, checkpoint: str) -> int:
    """Says what went over the wire and should not have; exit code 1 if anything did.

    Args:
        wire: the bytes that left.
        store: of the protected features, beside its photographs.
        checkpoint: of the defence.
    """
    leaks = check(wire.read_bytes(), store, checkpoint)
    for leak in leaks:
        print(f"leak: {leak}", file=sys.stderr)
    nothing = (
        f"nothing verbatim of a picture and no feature within {CLOSE:.0%} of an unprotected one was sent"
    )
    print("leaks were found" if leaks else nothing)
    return int(bool(leaks))


if __name__ == "__main__":
    try:
        sys.exit(auto_cli({"ask": ask, "check": look}))
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
