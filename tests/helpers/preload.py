"""Imported by the server that forks the tests' commands: all that they need, once for all of them."""

import gc

import facenet_pytorch  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from quick import quick

import crafter_pl.benchmark.work
import crafter_pl.cli.run  # noqa: F401

quick()
gc.freeze()
