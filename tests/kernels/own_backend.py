"""A backend of one's own: the four functions of `ops`, here by the CPU's loops. It notes what was called."""

from plif_lightning.kernels import ops

called = set()


def fire(*arguments):
    called.add("fire")
    return ops.fire.on_cpu(*arguments)


def fire_backward(*arguments):
    called.add("fire_backward")
    return ops.fire_backward.on_cpu(*arguments)


def moments(*arguments):
    called.add("moments")
    return ops.moments.on_cpu(*arguments)


def normalize_backward(*arguments):
    called.add("normalize_backward")
    return ops.normalize_backward.on_cpu(*arguments)
