"""Logit banks: clean and adversarial logits of a data set, on disk, for fitting correctors."""

from unperturb.banks.bank import LogitBank, is_bank, open_bank
from unperturb.banks.settings import DTYPES, BankSettings
from unperturb.banks.write import make_bank

__all__ = ["DTYPES", "BankSettings", "LogitBank", "is_bank", "make_bank", "open_bank"]
