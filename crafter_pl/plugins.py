"""Finds the classes that configs and checkpoints name, dropped-in files included."""

import importlib
import pkgutil


def import_stages() -> None:
    """Imports every stage: a config names a class without its module, and dropped-in files are found."""
    for package in ("stages", "defenses", "attacks", "judges"):
        import_modules(package)
    importlib.import_module("crafter_pl.audit.oracle")


def import_modules(package: str) -> None:
    """Imports all modules of `crafter_pl.PACKAGE`, those that were dropped in, too."""
    module = importlib.import_module(f"crafter_pl.{package}")
    for info in pkgutil.walk_packages(module.__path__, f"{module.__name__}."):
        importlib.import_module(info.name)
