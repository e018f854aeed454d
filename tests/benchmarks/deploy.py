"""A trained network's engines: seconds at batch 1 against other runtimes, accuracy with fewer bits, and early exits.

    python tests/benchmarks/deploy.py --ckpt_path RUN/checkpoints/best.ckpt [--data.root DIR] [--samples 1000]
                                      [--plot exits.png] [--forms forms.png]
    python tests/benchmarks/deploy.py --config cifar10dvs --recording DVS128.aedat [--events 70304]

Seconds on the first test sample, in alternation in one process, with 1 and 2 threads: ours, PyTorch's dense layers in
the folded network (the readable reference), SpikingJelly 2.0 in both of its modes, onnxruntime. Accuracy and the share
of decisions that differ from float32's, on `--samples` test samples. Early exits: accuracy against the mean number of
time-steps, for several margins. `--forms`: instead, each form of each layer over the share of inputs that spike, one
sample. `--config` instead of a checkpoint: seconds alone, of a network that fires as trained ones do (see networks.py),
on the first events of a recording.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.runtime.allocator import tune_allocator

tune_allocator()  # as main.py does

import onnxruntime
import torch

from plif_lightning.cli.trained import read_to_test
from plif_lightning.configs import network_of
from plif_lightning.deploy import deployed, exits, fold
from plif_lightning.deploy.engine import forms_of, inputs_of, run_alone
from plif_lightning.deploy.exporting import write_onnx
from plif_lightning.deploy.layers import event_layers, spiking_layers
from plif_lightning.deploy.plain import ConvLayer, DeployedNetwork, FCLayer
from plif_lightning.deploy.weights import Weights
from plif_lightning.events import Recording, Sensor
from plif_lightning.events.integration import integrate
from plif_lightning.events.readers import read_any
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.conv import ConvBlock
from plif_lightning.runtime.surroundings import processor
from tests.benchmarks.networks import alternate, fire_as_trained, in_words, inference, peer, run_peer

ENGINES = ("dense", "events", "auto", "int16", "int8")
SHARES = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5)
MARGINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


def firing_on(name: str, path: Path, number: int) -> tuple[SpikingNetwork, torch.Tensor]:
    """The network of a configuration, whose layers fire as trained ones do on a recording's first events, and those
    as frames [T, 1, 2, H, W]."""
    recording = Recording(*(of[:number] for of in read_any(path)))
    torch.manual_seed(0)
    net = network_of(name)
    sensor = Sensor(*net.input_shape[1:])
    x = torch.from_numpy(integrate(recording, sensor, net.time_steps)).unsqueeze(1).float()
    shares = fire_as_trained(net, x, training=False)
    print(f"{name}, {len(recording.t):,} events of {path.name}; spikes: {in_words(shares)}")
    return net.eval(), x


def steps(made: DeployedNetwork, x: torch.Tensor) -> None:
    state = None
    for frame in x if x.dim() == 5 else [x] * made.time_steps:
        _, state = made.step(frame, state)


def seconds(net: SpikingNetwork, x: torch.Tensor, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for on_integers in (False, True):
            write_onnx(net, x.dim() == 4, Path(folder), on_integers)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            dense = use_backend(fold(net), "reference")
            cases: dict[str, Callable[[], Any]] = {"PyTorch, dense, folded": inference(dense, x)}
            for title, mode in (("SpikingJelly, multi-step", "m"), ("SpikingJelly, as the authors", "s")):
                other = peer(net, mode).eval()
                cases[title] = inference(lambda y, n=other, m=mode: run_peer(n, y, net.time_steps, m), x)
            for engine in ENGINES:
                made = deployed(net, engine, x)  # type: ignore[arg-type]
                cases[engine] = inference(made, x)
                if engine in ("auto", "int8"):
                    cases[f"{engine}, step by step"] = partial(steps, made, x)
                print(f"  {engine}: {', '.join(f'{name} {form}' for name, form in made.forms.items())}")
            times = alternate(cases, rounds)
            # By themselves: its threads spin for a while after each run, and slow down what runs next.
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            for title, file in (("float32", "network.onnx"), ("int8", "network_int8.onnx")):
                session = onnxruntime.InferenceSession(f"{folder}/{file}", options)
                times |= alternate({f"onnxruntime, {title}": partial(session.run, None, {"x": x.numpy()})}, rounds)
                del session
            print(f"  {threads} thread{'s' if threads > 1 else ''}, one sample, T = {net.time_steps} [ms]")
            for title, found in times.items():
                low, middle, high = (1e3 * v for v in (min(found), statistics.median(found), max(found)))
                print(
                    f"    {title:30} {middle:7.2f} [{low:.2f}, {high:.2f}], a time-step {middle / net.time_steps:.2f}"
                )


def forms(net: SpikingNetwork, rounds: int, file: Path) -> None:
    """Prints and draws the milliseconds of each layer's forms over the share of inputs that are not zero.

    Of one sample; of a convolution with its neurons and pool.
    """
    import matplotlib.pyplot as plt

    folded = fold(net).requires_grad_(False)
    blocks, inputs = folded.blocks(), inputs_of(folded, None)
    spiking = spiking_layers(net)
    names = event_layers(net, None) + spiking
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), layout="constrained", squeeze=False)
    every = ["events", "dense", *(f"{bits} {form}" for bits in ("int16", "int8") for form in ("events", "dense"))]
    colours = {form: f"C{i}" for i, form in enumerate(every)}
    for axis, name in zip(axes[0], names, strict=True):
        curves: dict[str, list[float]] = {}
        for share in SHARES:
            x = torch.rand_like(inputs[name]).lt(share).float()
            makers: dict[str, Callable[[], Weights]] = {}
            for engine in ("auto", "int16", "int8"):
                makers |= forms_of(blocks[name], engine, x, binary=name in spiking)
            kind: Any = ConvLayer if isinstance(blocks[name], ConvBlock) else FCLayer
            cases = {form: run_alone(kind(name, blocks[name], make()), x) for form, make in makers.items()}
            times = {form: 1e3 * statistics.median(found) for form, found in alternate(cases, rounds).items()}
            print(
                f"  {name}, {100 * share:.0f} %: " + ", ".join(f"{form} {ms:.3f}" for form, ms in times.items()) + " ms"
            )
            for form, ms in times.items():
                curves.setdefault(form, []).append(ms)
        for form, ms in curves.items():
            axis.plot([100 * share for share in SHARES], ms, marker="o", markersize=3, label=form, color=colours[form])
        axis.set(title=name, xlabel="inputs that are not zero [%]", yscale="log")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which("{x:g}")
    axes[0, 0].set_ylabel("milliseconds, one sample, all time-steps")
    figure.legend(handles=axes[0, -1].get_lines(), loc="outside right center", fontsize=8)  # those of all forms
    figure.suptitle(f"{processor()}, {torch.get_num_threads()} threads; {net.structure}", fontsize=9)
    figure.savefig(file, dpi=110)


def accuracies(net: SpikingNetwork, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Prints them; gives the votes of float32 [T, N, C]."""
    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        engine: deployed(net, engine)  # type: ignore[arg-type]
        for engine in ("events", "int16", "int8", "int4")
    }

    def bf16(some: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net(some)

    made["bf16"] = bf16
    some = x.split(64, 0 if x.dim() == 4 else 1)
    votes = {name: torch.cat([form(part) for part in some], 1) for name, form in made.items()}
    decided = {name: of.mean(0).argmax(-1) for name, of in votes.items()}
    for name, classes in decided.items():
        right = 100 * (classes == label).float().mean().item()
        changed = 100 * (classes != decided["events"]).float().mean().item()
        print(f"  {'fp32' if name == 'events' else name:6} {right:.2f} %, {changed:.2f} % of the decisions changed")
    return votes["events"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--config", choices=["nmnist", "cifar10dvs", "dvsgesture"])
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--events", type=int, default=70_304, help="of the recording")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--forms", type=Path)
    given = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    if given.config is not None:
        seconds(*firing_on(given.config, given.recording, given.events), given.rounds)
        return
    net, x, label = read_to_test(given.ckpt_path, given.root, given.samples)
    if given.forms is not None:
        forms(net, given.rounds, given.forms)
        return
    seconds(net, x[:1] if x.dim() == 4 else x[:, :1], given.rounds)
    votes = accuracies(net, x, label)
    curve = []
    for margin in MARGINS:
        classes, steps = exits(votes, margin)
        curve.append((steps.float().mean().item(), 100 * (classes == label).float().mean().item()))
        print(f"  ahead by {margin:.1f}: {curve[-1][1]:.2f} % after {curve[-1][0]:.2f} time-steps")
    if given.plot is not None:
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        axis.plot(*zip(*curve, strict=True), marker="o", markersize=3)
        for (steps, accuracy), margin in zip(curve, MARGINS, strict=True):
            axis.annotate(f"{margin:.1f}", (steps, accuracy), fontsize=6, xytext=(2, -8), textcoords="offset points")
        axis.set(xlabel="mean time-steps", ylabel="accuracy [%]", title="early exit, by margin")
        figure.savefig(given.plot, dpi=120)


if __name__ == "__main__":
    main()
