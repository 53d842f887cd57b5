"""Where the repository keeps what: the only module that knows folders."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = Path(os.environ.get("LONGTAIL_OUTPUT") or ROOT).resolve()      # another place for results/ and figures/
DATA = Path(os.environ.get("LONGTAIL_DATA") or ROOT / "data").resolve()
NOTEBOOKS = ROOT / "notebooks"
RESULTS = OUTPUT / "results"
FIGURES = OUTPUT / "figures"
