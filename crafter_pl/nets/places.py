"""Where a net can be cut: what the feature is there, and how much of the work is before it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from crafter_pl.errors import UserError
from crafter_pl.nets.cut import ancestors, block_ends, traced

SHARE, TIMES = 0.25, 4  # what `propose` allows: of the work on the edge; of the picture's numbers


@dataclass(frozen=True)
class Place:
    """A block's end.

    Attributes:
        name: of the block.
        shape: of the feature there, without the batch.
        share: of the net's multiply-adds that are before it, in [0, 1].
    """

    name: str
    shape: tuple[int, ...]
    share: float

    @property
    def bytes(self) -> int:
        """Of the feature as float16."""
        return 2 * math.prod(self.shape)


class _Counting(fx.Interpreter):
    """Runs a net and notes the shape and the work of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.work: dict[fx.Node, int] = {}
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 (whatever a node gives)
        before = self.counter.get_total_flops()
        made = super().run_node(n)
        self.work[n] = self.counter.get_total_flops() - before
        if isinstance(made, Tensor):
            self.shapes[n] = tuple(made.shape[1:])
        return made


@torch.no_grad()
def places(net: nn.Module, side: int) -> tuple[list[Place], tuple[int, ...]]:
    """The block ends of a net, from the first to the last, and the shape of its answers without the batch.

    Args:
        net: traceable by torch.fx; ``(N, 3, side, side)`` -> answers.
        side: in pixels.

    Raises:
        UserError: it cannot be traced, does not take such pictures, or its answers are no vector.
    """
    graph, names = traced(net)
    training = net.training
    run = _Counting(fx.GraphModule(net.eval(), graph))
    try:
        with run.counter:
            run.run(torch.zeros(1, 3, side, side))
    except Exception as error:  # whatever the net's own code raises
        raise UserError(
            f"the net does not take RGB pictures (N, 3, {side}, {side}) ({str(error).splitlines()[0][:120]}"
            "): give another --size, or wrap it in a module that takes these and makes of them what it wants"
        ) from error
    finally:
        net.train(training)
    answers = run.shapes.get(next(node for node in graph.nodes if node.op == "output"), ())
    if len(answers) != 1:
        raise UserError(
            f"the net's answers have the shape {answers} for each picture: a vector is needed, in one "
            "tensor; wrap it in a module that gives one"
        )
    whole = max(sum(run.work.values()), 1)
    ends = {node: name for node, name in block_ends(graph, names).items() if run.shapes.get(node)}
    found = [
        Place(name, run.shapes[node], sum(run.work[one] for one in ancestors(node)) / whole)
        for node, name in ends.items()
    ]
    return found, answers


def propose(found: list[Place], side: int) -> Place:
    """The last place with a share of at most `SHARE` and a feature of at most `TIMES` the picture's numbers.

    Where no place is so, the one with the least work before it.

    Raises:
        UserError: there is no place at all.
    """
    if not found:
        raise UserError("the net cannot be cut anywhere: behind every node something from before is needed")
    fitting = [one for one in found if fits(one, side)]
    return fitting[-1] if fitting else min(found, key=lambda one: one.share)


def fits(place: Place, side: int) -> bool:
    """Whether little enough work is before it, and the feature small enough."""
    return place.share <= SHARE and math.prod(place.shape) <= TIMES * 3 * side**2
