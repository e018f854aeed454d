import copy
from concurrent.futures import ThreadPoolExecutor

import onnxruntime
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.errors import UserError
from plif_lightning.layers.norm import TimeBatchNorm


def stack():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(1, 3, 3), TimeBatchNorm(3), pl.PLIF(), nn.MaxPool2d(2))
    net = nn.Sequential(inner, nn.Flatten(), nn.Linear(3 * 9, 5), pl.LIF(init_tau=3.0))
    net[2].weight.data.mul_(10)  # so that it fires
    return net


def test_a_stack_over_time_is_its_layers_step_by_step():
    net = stack().double()
    x = 3 * torch.randn(6, 2, 1, 8, 8, dtype=torch.float64)
    y = pl.over_time(net)(x)
    conv, norm, first, pool = net[0]
    maps = first(norm(torch.stack([conv(step) for step in x])))
    features = torch.stack([net[2](pool(step).flatten(1)) for step in maps])
    torch.testing.assert_close(y, net[3](features))
    assert 0 < y.mean() < 1
    y.sum().backward()
    assert first.a.grad is not None


def test_wrapped_modules_keep_parameters_and_take_a_backend():
    net = pl.over_time(stack())
    assert len(list(net.parameters())) == len(list(stack().parameters()))
    x = torch.randn(4, 2, 1, 8, 8)
    assert torch.equal(pl.use_backend(net, "cpu")(x), pl.use_backend(net, "reference")(x))


class Wild(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = pl.PLIF()


def test_neurons_without_a_time_dimension_are_refused():
    with pytest.raises(UserError, match=r"Wild contains neurons, but is not an nn\.Sequential"):
        pl.over_time(nn.Sequential(nn.Flatten(), Wild()))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_a_batch_without_time_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), pl.PLIF())
    with pytest.raises(UserError, match=r"got \[5, 3\]: a batch \[N, features\] has no time. .*over_time"):
        net(torch.zeros(5, 1, 2, 2))


def test_hooks_of_a_sequential_see_its_input_and_output():
    inner = nn.Sequential(nn.Linear(4, 3), pl.PLIF())
    net, seen = pl.over_time(nn.Sequential(nn.Flatten(), inner)), []
    inner.register_forward_hook(lambda module, x, y: seen.append((x[0].shape, y.shape)) or 2 * y)
    x = 5 * torch.rand(6, 2, 1, 2, 2)
    y = net(x)
    assert seen == [((6, 2, 4), (6, 2, 3))]
    assert set(y.unique().tolist()) <= {0.0, 2.0}
    assert torch.equal(copy.deepcopy(net)(x), y)


def test_two_threads_run_one_network():
    """A sequence, one whose container has a hook, and single steps, at once: none sees another's states or shapes."""
    net = pl.over_time(stack())
    net.net[0].register_forward_hook(lambda module, x, y: 2 * y)
    inputs = [5 * torch.rand(5, n, 1, 8, 8) for n in (1, 2, 3, 4)]

    def stepped(x):
        state, outputs = None, []
        for frame in x:
            y, state = pl.step(net, frame, state)
            outputs.append(y)
        return torch.stack(outputs)

    net.eval()
    expected = [run(x) for x in inputs for run in (net, stepped)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(run, x) for _ in range(10) for x in inputs for run in (net, stepped)]
        found = [call.result() for call in calls]
    for y, y_expected in zip(found, 10 * expected, strict=True):
        assert torch.equal(y, y_expected)


def test_another_number_of_steps_ends_with_its_block_after_an_error_too():
    net = pl.SpikingNetwork((1, 8, 8), 3, 4, channels=4, fc_features=8, v_threshold=0.1)
    with pytest.raises(UserError, match="x must be"), net.for_time_steps(7):
        net(torch.zeros(5, 2, 1, 8, 8))
    assert net.time_steps == 4
    assert net(torch.zeros(2, 1, 8, 8)).shape == (4, 2, 3)


class Alone(nn.Module):
    """Our neurons in a module of somebody else's."""

    def __init__(self):
        super().__init__()
        self.fc, self.neuron = nn.Linear(8, 4), pl.PLIF()

    def forward(self, x):
        return self.neuron(self.fc(x.flatten(2)))


LAYERS = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), pl.PLIF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4)


@pytest.mark.parametrize("to_onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["module", "over_time", "task"])
@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporters about themselves
def test_modules_with_our_neurons_export_with_dynamic_batch(kind, to_onnx, tmp_path):
    """Under export the reference runs by itself."""
    torch.manual_seed(0)
    made = {
        "module": Alone,
        "over_time": lambda: pl.over_time(nn.Sequential(*LAYERS, pl.PLIF())),
        "task": lambda: pl.SpikingClassifier((2, 2, 2), 3, 4, channels=4, n_down=1, fc_features=8, v_threshold=0.1),
    }
    net, side = made[kind]().eval(), 0 if kind == "task" else 1
    x = 4 * torch.rand(*((2, 4) if kind == "task" else (4, 2)), 2, 2, 2)
    dynamic = ({side: torch.export.Dim("n", min=1)},)
    if to_onnx:
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False, dynamic_shapes=dynamic)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        run = lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])  # noqa: E731
    else:
        run = torch.export.export(net, (x,), dynamic_shapes=dynamic).module()
    more = torch.cat([x, 2 * x], side)
    with torch.no_grad():
        torch.testing.assert_close(run(more), net(more))


def test_multiple_layers_must_be_a_sequential():
    with pytest.raises(UserError, match=r"over_time takes one module: over_time\(nn.Sequential"):
        pl.over_time(nn.Linear(3, 2), pl.PLIF())
