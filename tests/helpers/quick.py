"""What makes the tests quick and proves nothing: tiny faces are drawn a thousand times."""

import copy
import functools
import os
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from crafter_pl.data import loading
from crafter_pl.nets import architectures
from crafter_pl.stages import task


@functools.cache  # once is enough
def quick() -> None:
    """In this process, what costs much and proves nothing costs little."""
    torch.set_num_threads(1)
    draw = functools.lru_cache(8)(loading.synthetic_faces)
    loading.synthetic_faces = lambda *settings: copy.deepcopy(draw(*settings))
    task.measure_frame = _once(task.measure_frame)
    architectures.torchvision_classifier = _drawn_once(architectures.torchvision_classifier)
    os.fsync = lambda stream: None  # what a test has written need not outlive the machine


def _once(measure: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """What ``measure`` says of the same pictures, measured once."""
    known: dict[bytes, object] = {}

    def go(images: Tensor) -> object:
        key = images.numpy().tobytes()
        if key not in known:
            known[key] = measure(images)
        return known[key]

    return go


def _drawn_once(make: Callable[[str], nn.Module]) -> Callable[[str], nn.Module]:
    """``make`` whose ResNet18 begins with the same weights every time: a checkpoint's mostly replace them."""
    return lambda arch: copy.deepcopy(_drawn()) if arch == "resnet18" else make(arch)


@functools.cache
def _drawn(small: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the first that is made draws no more than the others
        torch.manual_seed(0)
        net = torchvision.models.resnet18()
        if small:
            net.layer2, net.layer3, net.layer4 = (BasicBlock(64, 64) for _ in range(3))
            net.fc = nn.Linear(64, 1000)
        return net


def slim() -> nn.Module:
    """ResNet18 with a thirtieth of the weights behind layer1: the tiny task model, by arch ``quick:slim``."""
    return copy.deepcopy(_drawn(small=True))
