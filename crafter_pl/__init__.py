"""Facial features that still serve the cloud but no longer show who sent them (Crafter, NDSS 2024)."""

__version__ = "0.1.0"
