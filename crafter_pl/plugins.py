"""Finds the classes that configs and checkpoints name, dropped-in files included."""

import importlib
import pkgutil


def import_stages() -> None:
    """Imports every stage: a config names a class without its module, and dropped-in files are found."""
    for package in ("stages", "defenses", "attacks"):
        module = importlib.import_module(f"crafter_pl.{package}")
        for info in pkgutil.walk_packages(module.__path__, f"{module.__name__}."):
            importlib.import_module(info.name)
    importlib.import_module("crafter_pl.audit.oracle")
