"""Frozen nets: the same functions, faster. Batch norms are folded, derivatives of second order cheap."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crafter_pl.nets.cut import tracer
from crafter_pl.nets.small_maps import SmallMapConv2d, reached


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """Returns a frozen copy of ``net`` in eval mode, batch norms folded into the convolutions before them.

    The copy computes the same function up to rounding; batch norms elsewhere stay. ``net`` must be traceable
    by torch.fx (no data-dependent control flow) and is not changed.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    traced = fx.GraphModule(net, tracer(SmallMapConv2d).trace(net))
    for node in list(traced.graph.nodes):
        norm = _called(traced, node)
        if not isinstance(norm, nn.BatchNorm2d) or hasattr(norm, "act"):  # timm's are norm and more
            continue
        source = node.args[0]
        conv = _called(traced, source)
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and len(source.users) == 1:
            folded = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
            traced.set_submodule(source.target, folded)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False)


def _called(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


class _Convolve(torch.autograd.Function):
    """A convolution by a constant weight; its backward pass is its adjoint, a convolution of the same kind.

    PyTorch's own derivative of a convolution's backward pass always computes a gradient for the weight, too:
    a product with the Jacobian by double backward takes twice the work that it needs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:  # noqa: ANN401
        """``how`` is what `torch.convolution` takes after the bias."""
        ctx.weight, ctx.how, ctx.size = weight, how, x.shape[2:]
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        """The adjoint. A strided convolution forgets up to stride - 1 rows: the adjoint's output padding."""
        stride, padding, dilation, transposed, _, groups = ctx.how
        extra = [0] * len(stride)
        if not transposed:
            sides = zip(
                ctx.size, grad.shape[2:], stride, padding, dilation, ctx.weight.shape[2:], strict=True
            )
            extra = [
                size - ((made - 1) * step - 2 * pad + spread * (kernel - 1) + 1)
                for size, made, step, pad, spread, kernel in sides
            ]
        adjoint = (stride, padding, dilation, not transposed, extra, groups)
        return _Convolve.apply(grad, ctx.weight, None, adjoint), None, None, None


class FrozenConv(nn.Module):
    """``conv`` (any dimensions, transposed or not) with constant weights: the same function.

    Products with its Jacobian by double backward cost one convolution, as a backward pass does.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        self.how: tuple[Any, ...] = (
            list(conv.stride),
            list(conv.padding),
            list(conv.dilation),
            conv.transposed,
            list(conv.output_padding),
            conv.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """What ``conv`` returns."""
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.to(self.conv.weight.dtype)  # autocast narrows what comes before, and not this
            weight, how, seen = self.conv.weight, self.how, reached(self.conv, x.shape[2:])
            if seen is not None:
                weight, how = weight[seen], (how[0], [0] * len(how[1]), *how[2:])
            return _Convolve.apply(x, weight, self.conv.bias, how)
        return self.conv(x)


class _HardSigmoid(nn.Module):
    """The same function as torch's own, whose second derivative torch does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def freeze(net: nn.Module) -> nn.Module:
    """Returns a frozen copy of ``net`` in eval mode to differentiate twice: the same function up to rounding.

    Batch norms are folded (`fold_batchnorm`), and zero-padded convolutions are `FrozenConv`. A linear layer
    that widens keeps its weight with the outputs side by side in memory: on the CPU it is read about twice
    as fast for a single sample, there and back, and for eight and more as fast as before (dev/LOG.md).
    """
    frozen = fold_batchnorm(net)
    for name, module in list(frozen.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.t().contiguous().t()
        if isinstance(module, nn.Hardsigmoid):
            frozen.set_submodule(name, _HardSigmoid())
        if (
            isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            frozen.set_submodule(name, FrozenConv(module))
    return frozen
