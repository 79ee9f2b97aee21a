"""If the twin differs, our analysis of some cell is wrong: find it, keep it whole, say so, and go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxslim_merge.errors import VerifyError

Kept = Mapping[str, NDArray[np.int64]]
MOST = 8


def exonerate(kept: Kept, is_right: Callable[[Kept], bool]) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """The cells that can be slimmed together so that `is_right` holds, and the names of the guilty ones.

    `kept` maps the cells to slim, in graph order, to the indices that stay. Raises VerifyError if nothing to slim is
    left right, or more than a handful are guilty.
    """
    innocent, guilty = dict(kept), list[str]()
    while not is_right(innocent):
        names = list(innocent)
        if not names or len(guilty) == MOST:
            break
        low, high = 0, len(names)  # the first `low` cells together are right, the first `high` are not
        if not is_right({}):
            raise VerifyError(
                "the rewritten model differs from the original before any channel is removed: please report"
            )
        while high - low > 1:
            middle = (low + high) // 2
            if is_right({name: innocent[name] for name in names[:middle]}):
                low = middle
            else:
                high = middle
        guilty.append(names[high - 1])
        del innocent[names[high - 1]]
    else:
        return innocent, guilty
    raise VerifyError(f"the slimmed model differs from its twin, also without {', '.join(guilty)}: please report this")
