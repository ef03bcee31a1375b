"""Cuts any torchvision classifier in two at a named node."""

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
        raise UserError(f"arch {arch!r} is unknown; torchvision has {', '.join(known)}")
    return torchvision.models.get_model(arch, weights=None)


def replace_head(net: nn.Module, arch: str, outputs: int, before: int = 1000) -> None:
    """Puts a fresh linear layer with ``outputs`` units in the place of the last one, which has ``before``.

    Raises:
        UserError: the net does not end in a linear layer.
    """
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    last = net.get_submodule(linear[-1]) if linear else None
    if not isinstance(last, nn.Linear) or last.out_features != before:
        raise UserError(f"arch {arch!r} does not end in a linear layer, which another would replace")
    net.set_submodule(linear[-1], nn.Linear(last.in_features, outputs))


def cut_at(net: nn.Module, cut: str) -> tuple[nn.Module, nn.Module]:
    """Splits a net in two: all that the node ``cut`` needs, and all that is made of it.

    Args:
        net: traceable by torch.fx, with one input. The parts hold its modules, not copies.
        cut: name of a node or a module as torchvision's feature extraction has them, such as ``features.3``
            or ``layer2.0.relu``; of a module its last node.

    Returns:
        The edge, ``x -> value of the node``, and the cloud, ``value of the node -> output of the net``.

    Raises:
        UserError: there is no such node, or something before it is needed behind it, too.
    """
    tracer = NodePathTracer(leaf_modules=[StochasticDepth])
    graph = tracer.trace(net)
    names = {node: tracer.node_to_qualname.get(node, node.name) for node in graph.nodes}
    inside = [node for node, name in names.items() if name == cut or name.startswith(f"{cut}.")]
    if not inside or inside[-1].op in ("placeholder", "output"):
        tops = dict.fromkeys(".".join(name.split(".")[:2]) for node, name in names.items())
        raise UserError(f"there is no node {cut!r} to cut at; some that there are: {', '.join(tops)}")
    node = inside[-1]
    before = {node}  # and all that it is made of
    for old in reversed(graph.nodes):
        if old in before:
            before.update(old.all_input_nodes)
    edge, cloud = fx.Graph(), fx.Graph()
    on_edge: dict[fx.Node, fx.Node] = {}
    in_cloud = {node: cloud.placeholder("features")}
    for old in graph.nodes:
        part, copied = (edge, on_edge) if old in before else (cloud, in_cloud)
        if lost := [names[source] for source in old.all_input_nodes if source not in copied]:
            raise UserError(
                f"cannot cut at {cut!r}: {lost[0]!r}, before it, is also needed behind it, by "
                f"{names[old]!r}; cut where a block ends"
            )
        copied[old] = part.node_copy(old, copied.__getitem__)
    edge.output(on_edge[node])
    return _module(net, edge), _module(net, cloud)


def _module(net: nn.Module, graph: fx.Graph) -> nn.Module:
    module = fx.GraphModule(net, graph)
    module.delete_all_unused_submodules()
    return module
