"""Kernel distances on two processes: each has all pictures, so nothing is gathered."""

import torch
from experiment import start_server
from torch import distributed as dist
from torch import multiprocessing as mp

from crafter_pl.stages.quality import RandomFeatures, kernel_distance, kid


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 3, 16, 16, generator=generator) ** 2, torch.rand(14, 3, 16, 16, generator=generator)


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    made = [kernel_distance(*pictures())]
    if rank == 0:  # alone, as at the end of fit: nobody is waited for
        made.append(kid(RandomFeatures(), *pictures()))
    torch.save(made, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_as_one(tmp_path):
    expected = [kernel_distance(*pictures()), kid(RandomFeatures(), *pictures())]
    assert all(value > 0 for value in expected)
    start_server()
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == expected and second == expected[:1]
