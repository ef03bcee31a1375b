"""Upstream stages as attributes."""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Upstream(Generic[T]):
    """An upstream stage as an attribute: ``task = Upstream[TaskModel]()`` is ``self.upstream["task"]``."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = self.key or name

    def __get__(self, instance: Any, owner: type) -> T:  # noqa: ANN401 (a stage)
        return instance.upstream[self.key]
