"""Correcting logits (Li et al. 2019): a network from logits to corrected logits, no images."""

from unperturb.correction.corrector import Corrected, Corrector, load_corrector

__all__ = ["Corrected", "Corrector", "load_corrector"]
