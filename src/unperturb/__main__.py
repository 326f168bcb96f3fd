"""``python -m unperturb``: the same as the command ``unperturb``."""

from __future__ import annotations

from unperturb.cli import main

if __name__ == "__main__":
    main()
