"""Python's cyclic collector during a start: off while what stays is made, then told to leave all that alone.

Importing makes some 400,000 objects that live as long as the process. Walking them again and again takes 0.1 s of
a start, and later 0.1 s in which no stream moves whenever a full collection comes. Must not know what is started.
"""

from __future__ import annotations

import gc


def hold() -> None:
    """Collect nothing until `settle`: for a process that is about to import and build everything it consists of."""
    gc.disable()


def settle() -> None:
    """What exists now is never walked again; collect what comes. Cyclic rubbish made so far (0.5 MB) stays."""
    gc.freeze()
    gc.enable()
