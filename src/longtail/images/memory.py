"""How much memory work with images may take: a budget that people state, and what it allows at
once.

Half of it is for files and pictures that are being decoded, a quarter for images on their way
through views and encoder; the rest is for the program, names and tables. Arrays of a whole pool
stay in files.
"""

import contextlib
import re
import threading

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LEAST_BUDGET = 2 * 2**30  # libraries alone take 0.7 GB


class Budget:
    """Bytes that threads take and give back; who asks for more than is left waits, so that large
    pictures are decoded one by one.
    """

    def __init__(self, total):
        self.changed, self.taken = threading.Condition(), 0
        self.total = total

    @contextlib.contextmanager
    def decoding(self, count, what):
        """Hold ``count`` bytes of the half that is for decoding; ``OSError`` that names ``what``
        where they are more than that half.
        """
        if count > self.total // 2:
            raise OSError(
                f"{what} take {in_words(count)} to decode, memory: {in_words(self.total)} allows "
                f"{in_words(self.total // 2)}"
            )
        with self.changed:
            self.changed.wait_for(lambda: self.taken + count <= self.total // 2)
            self.taken += count
        try:
            yield
        finally:
            with self.changed:
                self.taken -= count
                self.changed.notify_all()

    @property
    def pixels(self):
        """Most pixels that go through views and encoder at once: 256 bytes each, by the widest
        first layers.
        """
        return self.total // 4 // 256


BUDGET = Budget(4 * 2**30)  # of this process; requests say ``memory``


def size_of(text):
    """Bytes that a text such as "4 GB" means; ``ValueError`` where it means none, or less than 2
    GB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", str(text), re.I)
    count = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if count < LEAST_BUDGET:
        raise ValueError(f"memory is {text}; give 2 GB or more, such as 4 GB")
    return count


def in_words(count):
    """Bytes as people write them."""
    return f"{count / 2**30:.3g} GB" if count >= 2**29 else f"{count / 2**20:.3g} MB"
