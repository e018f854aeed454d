"""Sizes of windows and maps."""

Size = int | tuple[int, int]
Shape = tuple[int, ...]


def pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def half_of(size: Size) -> Size:
    """Half a kernel, rounded down: the padding that keeps the size of a map at stride 1."""
    height, width = (side // 2 for side in pair(size))
    return height if height == width else (height, width)


def written_size(size: Size) -> str:
    """`3`, or `3x5` for a height and a width that differ."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def window_count(shape: Shape, kernel: Size, stride: Size, padding: Size, dilation: Size = 1) -> Shape:
    """Height and width after a window has moved over a map, as PyTorch counts them."""
    axes = zip(shape[1:], pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in axes)
