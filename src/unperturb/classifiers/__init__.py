"""Anything that classifies images, as one module from images in [0, 1] to logits."""

from unperturb.classifiers.base import Classifier, Origin, as_classifier
from unperturb.classifiers.folder import load_folder, save_classifier
from unperturb.classifiers.load import load_classifier, new_classifier
from unperturb.classifiers.view import eval_view
from unperturb.classifiers.weights import fit_state, read_weights
from unperturb.networks.geometry import Geometry

__all__ = [
    "Classifier",
    "Geometry",
    "Origin",
    "as_classifier",
    "eval_view",
    "fit_state",
    "load_classifier",
    "load_folder",
    "new_classifier",
    "read_weights",
    "save_classifier",
]
