"""Defences side by side: a grid of settings, each trained, protected, attacked and audited alike."""
