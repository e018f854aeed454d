"""Layers that keep their weight as rows, of which the inputs that are not zero choose some to be added up."""

from torch import Tensor, nn

from plif_lightning.kernels import conv_of_table, linear_of_table, table_of


class Rows(nn.Module):
    """A layer's weight as rows, float32, or integers with a scale for each output [O]; and a bias [O] or None."""

    table: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("table", table_of(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)


class RowsConv(Rows):
    """3x3 convolution of [N, C, H, W] with padding 1.

    Attributes:
        binary: whether its input is spikes; else it is mostly zeros, as frames of events are.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None, *, binary: bool = True) -> None:
        super().__init__(weight, scale, bias)
        self.binary = binary

    def sums(self, x: Tensor) -> Tensor:
        """Without the bias."""
        return conv_of_table(x, self.table, self.scale, binary=self.binary)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sums(x)
        return y if self.bias is None else y.add_(self.bias[:, None, None])


class RowsLinear(Rows):
    """FC layer of spikes [*, K], without a bias."""

    def sums(self, x: Tensor) -> Tensor:
        return linear_of_table(x, self.table, self.scale)

    forward = sums
