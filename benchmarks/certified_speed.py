"""What protecting a picture by a certified defence costs beside the encoder alone, on one core.

    python benchmarks/certified_speed.py "[CHECKPOINT, ...]"

All of them and the encoder in turns, a picture at a time, so that whatever else the machine does is shared.
The times are medians; face detection is apart.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from crafter_pl.audit.show.table import Table
from crafter_pl.data.pool import Pool
from crafter_pl.defenses import Certified
from crafter_pl.errors import UserError
from crafter_pl.nets.answer_head import multiply_adds
from crafter_pl.stages import load_stage


def speed(checkpoints: list[str], *, rounds: int = 200) -> None:
    """Prints a row for each checkpoint.

    Args:
        checkpoints: of trained `Certified`, of one task model.
        rounds: pictures.
    """
    torch.set_num_threads(1)
    stages = [load_stage(one, Certified) for one in checkpoints]
    size = int(stages[0].task.hparams["image_size"])
    encoder = stages[0].frozen(stages[0].device).encoder
    images = torch.rand(rounds + 10, 1, 3, size, size)
    index = torch.zeros(1, dtype=torch.int64)

    def protect(stage: Certified) -> Callable[[Tensor], Tensor]:
        options = stage.options()
        return lambda image: stage.protect(image, index, options)

    runs: list[Callable[[Tensor], Tensor]] = [torch.no_grad()(encoder), *map(protect, stages)]
    taken: list[list[float]] = [[] for _ in runs]
    for place, image in enumerate(images):
        for run, times in zip(runs, taken, strict=True):
            began = time.perf_counter()
            run(image)
            if place >= 10:
                times.append(1000 * (time.perf_counter() - began))
    alone, *others = map(statistics.median, taken)
    edge = multiply_adds(stages[0].task.net.encoder_module(), 3, size, size)
    rows: list[list[object]] = [["the encoder alone", f"{edge / 1e6:.1f} M", f"{alone:.2f} ms", "1.00", "-"]]
    for path, stage, median in zip(checkpoints, stages, others, strict=True):
        work = multiply_adds(stage.answering(), 3, size, size)
        name = Path(path).parents[1].name
        sent = f"{Pool(stage.pool).width} or {stage.pool[0, 0].numel() * 4:,}"
        rows.append([name, f"{work / 1e6:.1f} M", f"{median:.2f} ms", f"{median / alone:.2f}", sent])
    print(
        Table(
            ["protected by", "multiply-adds", "a picture", "of the encoder's", "bytes sent"], rows
        ).markdown()
    )


if __name__ == "__main__":
    try:
        auto_cli(speed, as_positional=True)
    except UserError as error:
        sys.exit(f"error: {error}")
