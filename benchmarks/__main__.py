"""``python -m benchmarks``: every benchmark."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
runpy.run_path(str(Path(__file__).with_name("run.py")), run_name="__main__")
