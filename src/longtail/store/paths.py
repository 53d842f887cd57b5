"""Where the repository keeps what: the only module that knows folders."""

import contextlib
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


@contextlib.contextmanager
def writing(path, count):
    """Where ``count`` bytes are written to ``path``: an ``OSError`` that names no file, as that of
    a full disk, names both.
    """
    try:
        yield
    except OSError as error:
        if error.filename and not str(error.filename).endswith(".part"):
            raise
        what = f"{error.strerror or error}, writing {count} bytes"
        raise OSError(error.errno, what, str(path)) from error


@contextlib.contextmanager
def in_part(path, count):
    """A path beside ``path`` where ``count`` bytes are written and which takes its place once they
    are; whatever happens, nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with writing(path, count):
            yield part
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
