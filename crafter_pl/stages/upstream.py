"""Upstream stages as attributes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Upstream(Generic[T]):
    """An upstream stage as an attribute, loaded by the init argument ``<key>_ckpt``.

    ``task = Upstream(TaskModel)`` is ``self.upstream["task"]``, see `Stage`.

    Args:
        kind: its class, or what loads one of several from a path.
        key: its name, where that is not the attribute's.
    """

    def __init__(self, kind: type[T] | Callable[[str], T], key: str = "") -> None:
        self.kind, self.key = kind, key

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = self.key or name

    def __get__(self, instance: Any, owner: type) -> T:  # noqa: ANN401 (a stage)
        return instance.upstream[self.key]
