"""A trained network's engines: seconds at batch 1 against other runtimes, and accuracy with fewer bits.

    python benchmarks/deploy.py --ckpt_path RUN/checkpoints/best.ckpt [--data.root DIR] [--samples 1000]
    python benchmarks/deploy.py --config cifar10dvs --recording DVS128.aedat [--events 70304]

Seconds on the first test sample, in alternation in one process, with 1 and 2 threads: ours, PyTorch's dense layers in
the folded network (the readable reference), SpikingJelly 2.0 in both of its modes, onnxruntime. Accuracy and the share
of decisions that differ from float32's, on `--samples` test samples. `--config` instead of a checkpoint: seconds alone,
of a network that fires as trained ones do (see networks.py), on the first events of a recording.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does

import onnxruntime
import torch

from benchmarks.networks import fire_as_trained, in_words, inference, peer, run_peer
from benchmarks.timing import alternate
from plif_lightning.cli.trained import read_to_test
from plif_lightning.configs import network_of
from plif_lightning.deploy import DeployedNetwork, Engine, deployed, fold
from plif_lightning.deploy.exporting import write_onnx
from plif_lightning.events import Recording, Sensor
from plif_lightning.events.integration import integrate
from plif_lightning.events.readers import read_any
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.runtime.process import processor


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
        write_onnx(net, x.dim() == 4, Path(folder))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            dense = use_backend(fold(net), "reference")
            cases: dict[str, Callable[[], Any]] = {"PyTorch, dense, folded": inference(dense, x)}
            for title, mode in (("SpikingJelly, multi-step", "m"), ("SpikingJelly, as the authors", "s")):
                other = peer(net, mode).eval()
                cases[title] = inference(lambda y, n=other, m=mode: run_peer(n, y, net.time_steps, m), x)
            for engine in get_args(Engine):
                made = deployed(net, engine)
                cases[engine] = inference(made, x)
                cases[f"{engine}, step by step"] = partial(steps, made, x)
                print(f"  {engine}: {', '.join(f'{name} {form}' for name, form in made.forms.items())}")
            times = alternate(cases, rounds)
            # By themselves: its threads spin for a while after each run, and slow down what runs next.
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(f"{folder}/network.onnx", options)
            times |= alternate({"onnxruntime": partial(session.run, None, {"x": x.numpy()})}, rounds)
            del session
            print(f"  {threads} thread{'s' if threads > 1 else ''}, one sample, T = {net.time_steps} [ms]")
            for title, found in times.items():
                low, middle, high = (1e3 * v for v in (min(found), statistics.median(found), max(found)))
                print(
                    f"    {title:30} {middle:7.2f} [{low:.2f}, {high:.2f}], a time-step {middle / net.time_steps:.2f}"
                )


def accuracies(net: SpikingNetwork, x: torch.Tensor, label: torch.Tensor) -> None:
    """Prints how many test samples are right, and how many decisions differ from float32's."""

    def bf16(some: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net(some)

    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {name: deployed(net, name) for name in get_args(Engine)}
    some = x.split(64, 0 if x.dim() == 4 else 1)
    decided = {
        name: torch.cat([form(part).mean(0).argmax(-1) for part in some])
        for name, form in (made | {"bf16": bf16}).items()
    }
    for name, classes in decided.items():
        right = 100 * (classes == label).float().mean().item()
        changed = 100 * (classes != decided["float32"]).float().mean().item()
        print(f"  {name:7} {right:.2f} %, {changed:.2f} % of the decisions changed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--config", choices=["nmnist", "cifar10dvs", "dvsgesture"])
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--events", type=int, default=70_304, help="of the recording")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    if given.config is not None:
        seconds(*firing_on(given.config, given.recording, given.events), given.rounds)
        return
    net, x, label = read_to_test(given.ckpt_path, given.root, given.samples)
    seconds(net, x[:1] if x.dim() == 4 else x[:, :1], given.rounds)
    accuracies(net, x, label)


if __name__ == "__main__":
    main()
