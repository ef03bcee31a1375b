"""Faces in, crafted features out and in again."""
