"""From an encoder to a classifier: features once, then a head on the resident features."""

from sapper.downstream.building import build
from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract, predict
from sapper.downstream.heads import KNN, MLP, Head, Linear, Standardize

__all__ = ["KNN", "MLP", "Classifier", "Head", "Linear", "Standardize", "build", "extract", "predict"]
