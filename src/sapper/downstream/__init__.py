"""From an encoder to a classifier: features once, then a head on the resident features."""

from sapper.downstream.building import AnyHead, build
from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract, mean_cosine, predict
from sapper.downstream.heads import KNN, MLP, Head, Linear, Standardize, Stepwise, TunedHead
from sapper.downstream.tuning import Finetune, start
from sapper.downstream.zero_shot import ZeroShot

__all__ = [
    "KNN",
    "MLP",
    "AnyHead",
    "Classifier",
    "Finetune",
    "Head",
    "Linear",
    "Standardize",
    "Stepwise",
    "TunedHead",
    "ZeroShot",
    "build",
    "extract",
    "mean_cosine",
    "predict",
    "start",
]
