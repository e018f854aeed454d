"""The conventional network of a spiking network's shape, in float32 for training and in 8 bits for onnxruntime."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.deploy.exporting import save_onnx
from plif_lightning.deploy.folding import fold
from plif_lightning.errors import UserError
from plif_lightning.runtime.extras import needed_by
from plif_lightning.structure import parse
from plif_lightning.structure.layers import FC, Conv, Integrator, Pool, Votes
from plif_lightning.structure.shapes import Placed, padding_of, placed


class ConventionalNetwork(nn.Module):
    """A network of a structure's layers with ReLU in the place of neurons and no time.

    It is trained as a network of one's own, `--model.network plif_lightning.deploy.ConventionalNetwork
    --model.network.structure '...'`, with `cross_entropy`; the mean of its logits over frames is its decision.

    Args:
        structure: in the notation; convolutions, pools, FC layers and votes.
        input_shape: shape of a sample at a step, (C, H, W).
        num_classes: number of classes.
        dropout: drop probability of `DP`.

    Raises:
        UserError: it has other layers; names the first.
    """

    time_steps: int | None = None  # set by the task; images have so many equal outputs

    def __init__(self, structure: str, input_shape: tuple[int, ...], num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.structure, self.input_shape, self.num_classes = parse(structure), tuple(input_shape), num_classes
        layers = [part for one in placed(self.structure, input_shape, num_classes) for part in _parts(one, dropout)]
        if isinstance(layers[-1], nn.ReLU):
            layers.pop()  # the last layer gives logits
        votes = self.structure.layers[-1]
        if isinstance(votes, Integrator):
            raise UserError(f"a conventional network has no layer {votes}.")
        if isinstance(votes, Votes):
            layers += [nn.Unflatten(1, (-1, votes.per_class)), _Mean()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [T, N, classes] of frames [T, N, C, H, W], each by itself, or of images [N, C, H, W]."""
        if x.dim() == 4:
            return self.logits(x).expand(self.time_steps or 1, -1, -1)
        return self.logits(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        found: Tensor = self.layers(x.to(next(self.parameters()).dtype))
        return found


def _parts(one: Placed, dropout: float) -> Iterator[nn.Module]:
    """PyTorch's modules of a layer."""
    match one.layer:
        case Conv() as conv:
            yield nn.Conv2d(
                one.before[0], conv.channels, conv.kernel, conv.stride, padding_of(conv), conv.dilation, conv.groups,
                bias=not conv.norm,
            )  # fmt: skip
            if conv.norm:
                yield nn.BatchNorm2d(conv.channels)
            if conv.neurons is not None:
                yield nn.ReLU()
            if isinstance(conv.pool, Pool):
                yield _pool(conv.pool)
        case Pool() as pool:
            yield _pool(pool)
        case FC() as fc:
            if len(one.before) > 1:
                yield nn.Flatten()
            if (p := dropout if fc.dropout is None else fc.dropout) > 0:
                yield nn.Dropout(p)
            yield nn.Linear(int(np.prod(one.before)), fc.features, fc.bias)
            if fc.neurons is not None:
                yield nn.ReLU()
        case other:
            raise UserError(f"a conventional network has no layer {other}.")


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def _pool(pool: Pool) -> nn.Module:
    largest = pool.kind == "MP"
    if pool.kernel is None:
        return nn.AdaptiveMaxPool2d(1) if largest else nn.AdaptiveAvgPool2d(1)
    kind = nn.MaxPool2d if largest else nn.AvgPool2d
    return kind(pool.kernel, pool.stride, pool.padding)


def int8_session(net: ConventionalNetwork, images: Tensor, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """The network in 8 bits, weights and activations, as onnxruntime runs it: a function of one image [1, C, H, W].

    On a processor without VNNI in 7 bits, as onnxruntime advises.

    Args:
        net: trained network.
        images: [N, C, H, W], from which the ranges of activations are taken (smallest and largest value).
        threads: of onnxruntime.

    Raises:
        UserError: a package is missing.
    """
    with needed_by("a conventional 8-bit network"):
        import onnxruntime as ort
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> Any:
            image = next(self.rest, None)
            return None if image is None else {"x": image[None].float().numpy()}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "int8")]
        program = torch.export.export(fold(net).layers, (images[:1].float(),))
        save_onnx(program, steps[0], (["x"], ["logits"]))
        logging.disable(logging.WARNING)  # it advises what is done in the next step
        try:
            quant_pre_process(str(steps[0]), str(steps[1]))
            quantize_static(
                str(steps[1]), str(steps[2]), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                # Without VNNI, pairs of products are added in 16 bits and clipped: weights of 7 bits keep them inside.
                reduce_range=not torch.cpu._is_vnni_supported(),
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(steps[2]), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
