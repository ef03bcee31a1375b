"""Defences to compare with: each stands on the interface, and nothing stands on them."""
