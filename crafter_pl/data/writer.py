"""The one writer of feature stores: for `predict`, for attackers' queries and for photographs."""

from pathlib import Path
from typing import Any

from torch import Tensor

from crafter_pl.data.store import MANIFEST, read_manifest, shard_name, write_manifest, write_shard
from crafter_pl.data.transport import bytes_each
from crafter_pl.errors import UserError
from crafter_pl.files import write_file
from crafter_pl.memory import peak_memory_mb


class StoreWriter:
    """Writes one store batch by batch, and goes on where an interrupted writer stopped.

    Args:
        folder: the store.
        about: its manifest, but for the count, the shards and what `finish` adds.
    """

    def __init__(self, folder: str | Path, about: dict[str, Any]) -> None:
        self.folder, self.about = Path(folder), about
        self.seconds, self.written = 0.0, 0

    def claim(self, fingerprint: str) -> None:
        """Marks the folder as that of a store with this fingerprint.

        Raises:
            UserError: features of other settings are in it.
        """
        mark, there = self.folder / "fingerprint", None
        if (self.folder / MANIFEST).is_file():
            there = read_manifest(self.folder).get("fingerprint")
        elif mark.is_file():
            there = mark.read_text().strip()
        elif any(self.folder.glob("shard-*")):
            there = "unknown"
        if there not in (None, fingerprint):
            raise UserError(
                f"{self.folder} holds features of other settings, checkpoints or versions of the defence; "
                "choose another --protect.out, or delete the folder"
            )
        self.about |= {"fingerprint": fingerprint}
        if not mark.is_file():
            write_file(mark, f"{fingerprint}\n".encode())

    def write(self, number: int, features: Tensor, index: Tensor, seconds: float = 0.0) -> None:
        """Writes a shard, see `write_shard`; ``seconds`` is what protecting has taken."""
        write_shard(self.folder, number, features, index, self.about["dtype"])
        self.seconds += seconds
        self.written += len(index)

    @property
    def cost(self) -> dict[str, float | None]:
        """What the features written by this process took, and how many bytes each is."""
        return {
            "seconds_per_image": self.seconds / self.written if self.written else None,
            "peak_memory_mb": peak_memory_mb(),
            "bytes_per_image": bytes_each(self.about["shape"], self.about["dtype"]),
        }

    def finish(self, sizes: dict[int, int], **more: Any) -> Path:  # noqa: ANN401 (entries of the manifest)
        """Writes the manifest: the shards by their numbers with their sizes, and ``more``."""
        shards = {shard_name(number): size for number, size in sizes.items()}
        return write_manifest(
            self.folder, {**self.about, "count": sum(sizes.values()), "shards": shards, **more}
        )
