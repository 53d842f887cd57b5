"""A million made-up images scored and picked on two cores: ``python tests/campaign/million.py
[images]``.

Prints seconds and the peak of memory after each step; exit status 1 when the peak is more than
``ALLOWED``.
"""

import sys

from longtail.bench import selection

# MiB for a million images of 64 features and two views: 732 MiB of them are what is given
ALLOWED = 2400


def main(images=1_000_000):
    """Print the steps; whether they took too much memory."""
    rows = selection.pool_costs([int(images)])
    print(rows.round(1).to_string(index=False))
    return int(rows.peak_mib.max() > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
