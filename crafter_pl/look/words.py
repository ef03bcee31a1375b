"""A message's codeword in words."""

from collections.abc import Sequence

from crafter_pl.answers import Kind

SURE = 0.75  # what the codeword says with this probability or more, or with its opposite, is said plainly
SHOWN = 6  # attributes that are said, the surest ones
_QUALITIES = ("Attractive", "Bald", "Blurry", "Chubby", "Male", "Smiling", "Young")
_SAID = {
    "Mouth_Slightly_Open": ("mouth open", "mouth closed"),
    "Eyeglasses": ("glasses", "no glasses"),
    "No_Beard": ("no beard", "beard"),
}


def phrase(attribute: str, present: bool) -> str:
    """An attribute, or that it is not there: `glasses`, `no glasses`; `smiling`, `not smiling`."""
    if attribute in _SAID:
        return _SAID[attribute][not present]
    name = attribute.removeprefix("Wearing_").replace("_", " ").lower()
    return name if present else f"{'not' if attribute in _QUALITIES else 'no'} {name}"


def in_words(codeword: Sequence[float], attributes: Sequence[str], kind: Kind = "multilabel") -> str:
    """What a message says: `smiling, no glasses`; what it leaves open is `perhaps`.

    Args:
        codeword: probabilities of the attributes or classes, values in their units, or an embedding.
        attributes: their names, in the same order. Of more than six the surest are said, and how many others.
        kind: of the answers.
    """
    if kind == "embedding":
        return "a direction"
    if kind == "regression":
        said = [f"{name} {value:.3g}" for name, value in zip(attributes, codeword, strict=True)]
        return ", ".join(said[:SHOWN]) + (f", and {len(said) - SHOWN} more" if len(said) > SHOWN else "")
    if kind == "multiclass":
        best = max(range(len(codeword)), key=lambda row: codeword[row])
        return "perhaps " * (codeword[best] < SURE) + attributes[best]
    surest = sorted(range(len(codeword)), key=lambda row: -abs(codeword[row] - 0.5))[:SHOWN]
    said = [
        "perhaps " * (1 - SURE < codeword[row] < SURE) + phrase(attributes[row], codeword[row] >= 0.5)
        for row in sorted(surest)
    ]
    more = len(codeword) - len(said)
    return ", ".join(said) + (f", and {more} more" if more else "")
