"""Judges: who or what says whose face a picture shows, and how well it does on originals."""

from crafter_pl.judges.judge import GalleryJudge, Judge, OracleJudge, embedded
from crafter_pl.judges.recognisers import Dlib, FaceNet, Onnx, Recogniser, TorchProgram

__all__ = [
    "Dlib",
    "FaceNet",
    "GalleryJudge",
    "Judge",
    "Onnx",
    "OracleJudge",
    "Recogniser",
    "TorchProgram",
    "embedded",
]
