"""What an export says of itself, in words."""

from typing import Any

from crafter_pl.data.pool import MEDIA_TYPE

UNPROTECTED = "THE ENCODER ALONE DOES NOT PROTECT: its features give the face away. Never send them."


def figures(about: dict[str, Any]) -> str:
    """What was measured of a graph, in a line."""
    found = ", ".join(f"{kind} {value:.1g}" for kind, value in about["max_difference"].items())
    times = ", ".join(f"{kind} {value:.2f} ms" for kind, value in about["latency_ms_one_core"].items())
    return f"largest difference to torch: {found}; a picture on one core: {times}"


def readme(made: dict[str, Any]) -> str:
    """What somebody must know who has this folder alone."""
    sent = "`protect` gives what it sends; an audit says how much that hides"
    blocks = [
        "# Edge graphs by crafter_pl",
        f"**{UNPROTECTED}**",
        f"The defence is `{made['defense']}`: {sent if made['protects'] else 'it is not in here'}.",
    ]
    for name, about in made["graphs"].items():
        takes = ", ".join(f"`{key}` {_sizes(sizes)}" for key, sizes in about["inputs"].items())
        gives = ", ".join(f"`{key}` {_sizes(sizes)}" for key, sizes in about["outputs"].items())
        text = f"{takes} -> {gives}, N from 1"
        blocks.append(f"`{name}`: {text}. {figures(about)}.")
    text = "`images`: aligned faces as in the encoder's training, RGB in [0, 1], not normalised"
    if frame := made["frame"]:
        text += (
            f". There, in sides of the picture, the eyes are {2 * frame['eye']:.3f} apart and the corners of "
            f"the mouth {2 * frame['mouth']:.3f}, {0.5 + frame['eye_height']:.3f} and "
            f"{0.5 + frame['mouth_height']:.3f} below its upper edge (medians)"
        )
    blocks.append(f"{text}.")
    if any("noise" in about["inputs"] for about in made["graphs"].values()):
        blocks.append(
            "`noise`: standard normal numbers, drawn on the device anew for every picture, from a source "
            "that nobody can predict. Whoever knows them can undo or narrow down the protection."
        )
    if "messages" in made:
        blocks.append(
            f"What leaves is one of {made['messages']} messages about {made['about']}: "
            f"{made['bits_a_picture']:.2f} bits a picture. Whoever runs the graph keeps the account: bits "
            "about a person add up, and the same picture sends the message again that it sent before."
        )
    if pool := made.get("pool"):
        blocks.append(
            f"`place`, int64: where in the pool the feature is, message * {pool['rows']} + row. It may be "
            f"sent in place of the feature, in {pool['place_bytes']} bytes, the highest first, with "
            f"Content-Type {MEDIA_TYPE}. The graph `place` gives it alone: the pool is not in it."
        )
    return "\n\n".join([*blocks, "The rest is in export.json.\n"])


def _sizes(shape: list[Any]) -> str:
    return f"({', '.join(map(str, shape))})"
