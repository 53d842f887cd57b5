"""Where the repository keeps what: the only module that knows folders."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = Path(
    os.environ.get("LONGTAIL_OUTPUT") or ROOT
).resolve()  # another place for results/ and figures/
DATA = Path(os.environ.get("LONGTAIL_DATA") or ROOT / "data").resolve()
NOTEBOOKS = ROOT / "notebooks"
RESULTS = OUTPUT / "results"
FIGURES = OUTPUT / "figures"


def inside(folder, name):
    """``folder / name`` for a name made from input; ``ValueError`` unless it is one plain name,
    which cannot lead out of the folder.
    """
    if (
        not name
        or name.startswith(".")
        or len(name.encode(errors="replace")) > 255
        or any(sign in "/\\" or not sign.isprintable() for sign in name)
    ):
        raise ValueError(
            f"{name!r} cannot name a folder of {folder.name}; use letters, digits and signs other "
            "than / and \\, at most 255, "
            f"and no dot in front"
        )
    return folder / name
