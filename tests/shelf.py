"""Finished runs that no training made, for tests of what is read of them."""

import json
from dataclasses import asdict

from longtail.store import runs


def finished(results, run, part="arms", files=None, **ended):
    """A run with these files (name -> text) that counts as done and that the profile asks for."""
    folder, files = results.folder(run), files or {}
    runs.write(folder / "run.json", json.dumps(asdict(run)))
    for name, content in files.items():
        runs.write(folder / name, content)
    digests = {name: runs.sha256(content.encode()) for name, content in files.items()}
    runs.write_record(folder / "done.json", {"seed_images": 10, **ended, "files": digests})
    results.ask(part, [run], {})
    return run


def apart(name):
    """A profile with a store of its own, where equal runs are made again."""
    results = runs.Results(name)
    results.store = results.root / "runs"
    return results
