"""Cuts any classifier that torch.fx can trace in two at a named node."""

import sys
import traceback
from inspect import Parameter, signature
from pathlib import Path

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.ops import StochasticDepth

from crafter_pl.errors import UserError


def torchvision_classifier(arch: str) -> nn.Module:
    """A torchvision classification model without weights.

    Raises:
        UserError: torchvision has none of this name.
    """
    if arch not in (known := torchvision.models.list_models(module=torchvision.models)):
        raise UserError(
            f"arch {arch!r} is unknown; torchvision has {', '.join(known)}; others are given as timm:NAME, "
            "package.module:callable or file.py:callable"
        )
    return torchvision.models.get_model(arch, weights=None)


def last_linear(net: nn.Module) -> str | None:
    """The name of the last linear layer; None: there is none."""
    return next((name for name, one in [*net.named_modules()][::-1] if isinstance(one, nn.Linear)), None)


def replace_head(net: nn.Module, arch: str, outputs: int, before: int = 1000) -> None:
    """Puts a fresh linear layer with ``outputs`` units in the place of the last one, which has ``before``.

    Raises:
        UserError: the net does not end in a linear layer.
    """
    name = last_linear(net)
    last = None if name is None else net.get_submodule(name)
    if name is None or not isinstance(last, nn.Linear) or last.out_features != before:
        raise UserError(f"arch {arch!r} does not end in a linear layer, which another would replace")
    net.set_submodule(name, nn.Linear(last.in_features, outputs))


def tracer(*leaves: type[nn.Module]) -> NodePathTracer:
    """A tracer that takes these modules, and those that timm marks as untraceable, as single nodes."""
    functions = []
    if "timm" in sys.modules:  # a net of timm's cannot be here otherwise
        from timm.models import get_notrace_functions, get_notrace_modules

        leaves, functions = (*leaves, *get_notrace_modules()), get_notrace_functions()
    return NodePathTracer(leaf_modules=list(leaves), autowrap_functions=tuple(functions))


def traced(net: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """A net's graph as it is in eval mode, and the names of its nodes, as torchvision's extraction has them.

    Of its arguments all but the first keep their defaults; what it asserts of sizes is left out.

    Raises:
        UserError: its control flow hangs on what is computed; names the place.
    """
    found, training = tracer(StochasticDepth, nn.Linear), net.training  # and what others have derived from it
    try:
        _, *others = signature(net.forward).parameters.values()
        given = {one.name: one.default for one in others if one.kind is one.POSITIONAL_OR_KEYWORD}
        graph = found.trace(
            net.eval(), {name: one for name, one in given.items() if one is not Parameter.empty}
        )
    except Exception as error:  # whatever the net's own code raises when it meets a proxy
        raise UserError(
            f"the net cannot be traced, at {_place(error)} ({str(error).splitlines()[0][:120]}): what it "
            "does there hangs on values or sizes that it computes. Write it without if, for and assert, or "
            "put it into a function of its module that torch.fx.wrap names"
        ) from error
    finally:
        net.train(training)
    first = next(iter(graph.nodes))
    for node in reversed(graph.nodes):
        if node is not first and not node.users and _idle(node):
            graph.erase_node(node)
    return graph, {node: found.node_to_qualname.get(node, node.name) for node in graph.nodes}


def _idle(node: fx.Node) -> bool:
    """Whether a node that nobody uses does nothing: an assertion, a size, an argument."""
    home = getattr(node.target, "__module__", "") if node.op == "call_function" else ""
    asserts = "_assert" in getattr(node.target, "__name__", "")
    return node.op in ("placeholder", "get_attr") or asserts or home in ("builtins", "_operator")


def _place(error: Exception) -> str:
    """File and line of the net's own code that an error comes from."""
    ours = (Path(torch.__file__).parent, Path(torchvision.__file__).parent, Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not any(Path(one.filename).is_relative_to(folder) for folder in ours)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is made of."""
    found, todo = {node}, [node]
    while todo:
        fresh = [one for one in todo.pop().all_input_nodes if one not in found]
        found.update(fresh)
        todo += fresh
    return found


def crossing(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What a cut at a node would lose: one before it that is also needed behind it, and by which."""
    before = ancestors(node)
    for old in node.graph.nodes:  # in the order of the computation
        if old not in before and (lost := [one for one in old.all_input_nodes if one in before - {node}]):
            return lost[0], old
    return None


def block_ends(graph: fx.Graph, names: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """Nodes at which the net can be cut, by order, with the outermost module that each is the end of.

    Of a net without modules inside modules it is every node at which it can be cut.
    """
    last: dict[str, fx.Node] = {}  # of each module
    blocks: set[str] = set()  # modules that have modules
    for node, name in names.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = node
        blocks |= {".".join(parts[:depth]) for depth in range(1, len(parts))}
    free = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr") and not crossing(n)]
    ends = {node: sorted((one for one in blocks if last[one] is node), key=len) for node in free}
    found = {node: own[0] for node, own in ends.items() if own}
    return found if len(found) > 1 else {node: names[node] for node in free}


def cut_at(net: nn.Module, cut: str) -> tuple[nn.Module, nn.Module]:
    """Splits a net in two: all that the node ``cut`` needs, and all that is made of it.

    Args:
        net: traceable by torch.fx, with one input. The parts hold its modules, not copies.
        cut: name of a node or a module as torchvision's feature extraction has them, such as ``features.3``
            or ``layer2.0.relu``; of a module its last node.

    Returns:
        The edge, ``x -> value of the node``, and the cloud, ``value of the node -> output of the net``.

    Raises:
        UserError: the net cannot be traced, there is no such node, or something before it is needed behind
            it, too.
    """
    graph, names = traced(net)
    inside = [node for node, name in names.items() if name == cut or name.startswith(f"{cut}.")]
    if not inside or inside[-1].op in ("placeholder", "output"):
        tops = dict.fromkeys(".".join(name.split(".")[:2]) for node, name in names.items())
        raise UserError(f"there is no node {cut!r} to cut at; some that there are: {', '.join(tops)}")
    node = inside[-1]
    if lost := crossing(node):
        raise UserError(
            f"cannot cut at {cut!r}: {names[lost[0]]!r}, before it, is also needed behind it, by "
            f"{names[lost[1]]!r}; cut where a block ends{_nearest(graph, names, node)}"
        )
    before = ancestors(node)
    edge, cloud = fx.Graph(), fx.Graph()
    on_edge: dict[fx.Node, fx.Node] = {}
    in_cloud = {node: cloud.placeholder("features")}
    for old in graph.nodes:
        part, copied = (edge, on_edge) if old in before else (cloud, in_cloud)
        copied[old] = part.node_copy(old, copied.__getitem__)
    edge.output(on_edge[node])
    return _module(net, edge), _module(net, cloud)


def _nearest(graph: fx.Graph, names: dict[fx.Node, str], node: fx.Node) -> str:
    """The last block end before a node and the first behind it, as the end of a message."""
    order, ends = list(graph.nodes), block_ends(graph, names)
    place = order.index(node)
    before = [name for one, name in ends.items() if order.index(one) < place][-1:]
    behind = [name for one, name in ends.items() if order.index(one) > place][:1]
    return f"; the nearest are {' and '.join(map(repr, before + behind))}" if before + behind else ""


def _module(net: nn.Module, graph: fx.Graph) -> nn.Module:
    module = fx.GraphModule(net, graph)
    module.delete_all_unused_submodules()
    return module
