"""What a store or a checkpoint says of the defence that made it."""

from typing import Any

_METHODS = {"fast": "crafter_fast", "reference": "crafter_reference"}  # `present`


def present(about: dict[str, Any]) -> dict[str, Any]:
    """What a manifest or a checkpoint says of a defence, in present words: Crafter's methods had one name."""
    settings = about["settings"]
    if about["defense"] != "crafter" or "method" not in settings:
        return about
    method = settings["method"]
    alone = {"method"} if method == "crafter" else {"method", "critic"}
    own = {key: value for key, value in settings.items() if key not in alone}
    return {**about, "defense": _METHODS.get(method, method), "settings": own}


def seedless(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a protection without its seed: the same for two queries of one defence."""
    return {key: value for key, value in settings.items() if key != "seed"}
