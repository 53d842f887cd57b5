"""A million made-up images scored and picked on two cores: ``python tests/campaign/million.py
[images]``.

Prints processor seconds of each step (17 in all) and the peak of memory (1,574 MiB); exit status 1
when the peak is more than ``ALLOWED``.
"""

import sys

from longtail.bench import selection

ALLOWED = 2048  # MiB for a million images of 64 features and two views, which alone are 732 MiB


def main(images=1_000_000):
    """Print the steps; whether they took too much memory."""
    rows = selection.pool_costs([int(images)])
    print(rows.round(1).to_string(index=False))
    return int(rows.peak_mib.max() > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
