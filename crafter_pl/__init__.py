"""Facial features that still serve the cloud but no longer show who sent them (Crafter, NDSS 2024)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crafter_pl.edge.protector import Protector

__all__ = ["Protector"]
__version__ = "1.0.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the protocol of modules)
    """`Protector`, imported when it is asked for: `import crafter_pl` alone is light."""
    if name == "Protector":
        from crafter_pl.edge.protector import Protector

        return Protector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
