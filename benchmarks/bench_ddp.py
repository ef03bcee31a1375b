"""How decoder retraining scales: two processes against one, in one run, on this machine.

    python benchmarks/bench_ddp.py [--processes 2] [--batch 32] [--steps 30] [--side 32] [--width 48]

Each process has one thread: DistributedDataParallel over gloo, batch norm over the global batch, pairs
streamed from a feature store. `weak`: the batch of a process stays the same, so the global batch grows;
`strong`: the global batch stays the same, as `adaptive_black_box` trains. Best of three repetitions each.
"""

import os
import sys
import tempfile
import time
from itertools import count

import torch
from jsonargparse import Namespace, auto_cli
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from crafter_pl.data.features import StoreBatches
from crafter_pl.data.store import FORMAT_VERSION
from crafter_pl.data.writer import StoreWriter
from crafter_pl.nets import build_decoder, synchronised

SHARD, SHARDS = 64, 16


def write_store(folder, shape):
    """A store of random features."""
    about = {
        "format_version": FORMAT_VERSION,
        "defense": "random",
        "settings": {},
        "encoder_sha256": "",
        "split_hash": "",
        "split": "public_train",
        "shape": list(shape),
        "dtype": "float32",
        "seed": 0,
    }
    writer, generator = StoreWriter(folder, about), torch.Generator().manual_seed(0)
    for number, index in enumerate(torch.arange(SHARDS * SHARD).split(SHARD)):
        writer.write(number, torch.randn(SHARD, *shape, generator=generator), index)
    writer.finish(dict.fromkeys(range(SHARDS), SHARD))


def work(rank, world, batch, options, folder, rendezvous, seconds):
    """One process: trains and reports the seconds that the steps took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.manual_seed(0)
    decoder = synchronised(build_decoder("residual", shape_of(options.side), options.side, options.width))
    net = DistributedDataParallel(decoder) if world > 1 else decoder
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def images(index):
        return {"image": torch.rand(len(index), 3, options.side, options.side)}

    pairs = StoreBatches(folder, batch, lookup=images, rank=rank, world=world)
    items = ((epoch, number) for epoch in count() for number in range(len(pairs)))
    best = float("inf")
    for repetition in range(4):  # the first warms up
        dist.barrier()
        began = time.perf_counter()
        for _ in range(options.steps if repetition else 3):
            pair = pairs[next(items)]
            loss = (net(pair["features"]) - pair["image"]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        dist.barrier()
        if repetition:
            best = min(best, time.perf_counter() - began)
    if rank == 0:
        seconds.value = best
    dist.destroy_process_group()


def shape_of(side):
    """The features of ResNet18's first layer."""
    return 64, side // 4, side // 4


def rate(world, batch, options, folder):
    """Samples a second of `world` processes with `batch` samples each."""
    seconds = mp.get_context("spawn").Value("d", 0.0)
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(work, (world, batch, options, folder, f"{place}/rendezvous", seconds), nprocs=world)
    return world * batch * options.steps / seconds.value


def bench(processes: int = 2, batch: int = 32, steps: int = 30, side: int = 32, width: int = 48):
    """Train decoders by one process and by several, and print how many samples a second they take.

    Args:
        processes: how many are compared with one.
        batch: of one process alone, a multiple of them.
        steps: that are timed.
        side: of a picture, in pixels.
        width: of the decoder.
    """
    if batch % processes:
        print(f"error: --batch {batch} must be a multiple of --processes {processes}", file=sys.stderr)
        sys.exit(2)
    options = Namespace(steps=steps, side=side, width=width)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; one thread a process")
    print(f"decoder of width {width}, {side}x{side} pictures")
    with tempfile.TemporaryDirectory() as folder:
        write_store(folder, shape_of(side))
        one = rate(1, batch, options, folder)
        print(f"1 process,   batch {batch}: {one:.1f} samples/s")
        for kind, each in (("weak", batch), ("strong", batch // processes)):
            many = rate(processes, each, options, folder)
            print(
                f"{processes} processes, batch {processes}x{each} ({kind}): {many:.1f} samples/s, "
                f"{many / one:.2f} times, efficiency {many / one / processes:.0%}"
            )


if __name__ == "__main__":
    auto_cli(bench, as_positional=False)
