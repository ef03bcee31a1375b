"""Where `adopt` cuts nets of timm, and what that costs: a table in Markdown.

    python benchmarks/adopted.py [--nets "[resnet18, vit_tiny_patch16_224]"] [--image_size 64]

Multiply-adds are of convolutions and products of matrices. The seconds are of one picture through the edge's
half, the resizing included, on one core: the least of several.
"""

import math
import timeit

import torch
from jsonargparse import auto_cli

from crafter_pl.nets import SplitClassifier
from crafter_pl.nets.architectures import build_net, expected
from crafter_pl.nets.places import places, propose

NETS = ["resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"]


def main(nets: list[str] = NETS, image_size: int = 64):
    """Prints a row for each net.

    Args:
        nets: names of timm's models.
        image_size: of the faces, which the edge resizes to what the net takes.
    """
    torch.set_num_threads(1)
    print(
        "| net | takes | cut | feature | sent as | float16 | pool of 256, float32 | edge's share | edge, one "
        "picture |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in nets:
        whole = build_net(f"timm:{name}")
        side = expected(whole).side or image_size
        found, (answers,) = places(whole, side)
        cut = propose(found, side)
        net = SplitClassifier(f"timm:{name}", cut.name, answers, size=image_size, input_size=side).eval()
        encoder, picture = net.encoder_module().eval(), torch.rand(1, 3, image_size, image_size)
        with torch.no_grad():
            seconds = min(timeit.repeat(lambda run=encoder, x=picture: run(x), number=1, repeat=10))
        shapes = ("×".join(map(str, shape)) for shape in (cut.shape, net.feature_shape))
        pool = 256 * 4 * math.prod(net.feature_shape) / 1e6
        cells = [
            name,
            f"{side}×{side}",
            f"`{cut.name}`",
            *shapes,
            f"{cut.bytes / 1000:,.0f} kB",
            f"{pool:,.0f} MB",
        ]
        print("|", " | ".join([*cells, f"{cut.share:.0%}", f"{1000 * seconds:.0f} ms"]), "|", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
