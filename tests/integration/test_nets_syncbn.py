"""Batch norm over two processes against torch's over their batches together."""

import torch
from closeness import near
from experiment import start_server
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from crafter_pl.nets import SyncBatchNorm2d, build_decoder, synchronised

SHAPE = (8, 3, 4, 4)


def data():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn((2, *SHAPE), generator=generator, dtype=torch.float64)
    return 3 * x + 5, weight


def filled(net):
    with torch.no_grad():
        net.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        net.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return net.double()


def run(net, x, weight):
    """Two forward passes and a backward pass of a weighted sum: outputs and gradients."""
    x = x.clone().requires_grad_(True)
    net(x)
    y = net(x)
    (y * weight).sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": net.weight.grad,
        "bias": net.bias.grad,
        **dict(net.named_buffers()),
    }


def work(rank, folder, momentum):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x, weight = data()
    made = run(filled(SyncBatchNorm2d(3, momentum=momentum)), x.chunk(2)[rank], weight.chunk(2)[rank])
    torch.save(made, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_normalise_as_one(tmp_path):
    expected = run(filled(nn.BatchNorm2d(3, momentum=0.1)), *data())
    start_server()
    mp.start_processes(work, (str(tmp_path), 0.1), nprocs=2, start_method="forkserver")
    made = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for key in ("y", "x"):
        assert near(torch.cat([part[key] for part in made]), expected[key]), key
    for key in ("weight", "bias"):  # DDP averages what is summed here
        assert near(made[0][key] + made[1][key], expected[key]), key
    for part in made:
        assert near(part["running_mean"], expected["running_mean"])
        assert near(part["running_var"], expected["running_var"])
        assert torch.equal(part["num_batches_tracked"], expected["num_batches_tracked"])


def test_alone_it_is_plain_batch_norm():
    x, weight = data()
    mine, plain = run(filled(SyncBatchNorm2d(3)), x, weight), run(filled(nn.BatchNorm2d(3)), x, weight)
    assert all(torch.equal(mine[key], plain[key]) for key in plain)


def test_every_batch_norm_of_a_decoder_is_replaced():
    torch.manual_seed(0)
    net = build_decoder("residual", (4, 8, 8), 16, 8)
    features = torch.randn(4, 4, 8, 8)
    net(features)
    before, state = net.eval()(features), {key: value.clone() for key, value in net.state_dict().items()}
    assert synchronised(net) is net
    kinds = {type(module) for module in net.modules() if isinstance(module, nn.BatchNorm2d)}
    assert kinds == {SyncBatchNorm2d} and not any(module.training for module in net.modules())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(net(features), before)
