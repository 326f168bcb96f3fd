"""Labelled images by name, path or hub id."""

from __future__ import annotations

from unperturb.data.crops import random_crops
from unperturb.data.imageset import ImageSet
from unperturb.data.load import load_image_files, load_images

__all__ = ["ImageSet", "load_image_files", "load_images", "random_crops"]
