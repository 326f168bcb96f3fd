"""Correcting logits (Li et al. 2019): a network from logits to corrected logits, no images."""

from unperturb.correction.config import CorrectionConfig
from unperturb.correction.corrector import Corrected, Corrector, load_corrector
from unperturb.correction.files import CorrectedFile, correct_file
from unperturb.correction.fit import fit_correction

__all__ = [
    "Corrected",
    "CorrectedFile",
    "CorrectionConfig",
    "Corrector",
    "correct_file",
    "fit_correction",
    "load_corrector",
]
