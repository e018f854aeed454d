"""What passes from the data to the task."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """N samples."""

    x: Tensor  # [N, T, C, H, W]; T = 1 for a static image; counts of events in the smallest type that holds them
    label: Tensor  # int64 [N]
    sample: Tensor  # int64 [N], its place in the original data set
    target: Tensor | None = None  # float32 [N, C] of mixed samples; None where the label is all of it
