"""Delays: equal to a plain loop, in every form (`plif_lightning.kernels.cpu_delay`), in steps and exports."""

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.deploy import deployed
from plif_lightning.deploy.costs import cost
from plif_lightning.deploy.exporting import save_onnx, to_export, to_export_step
from plif_lightning.deploy.nir import to_nir
from plif_lightning.errors import UserError
from plif_lightning.kernels import layout, linear_of_delayed
from plif_lightning.network import use_backend
from plif_lightning.network.user_networks import learned_by_layers
from plif_lightning.signals.states import as_tuple
from plif_lightning.structure import parse

T, N, C, D = 11, 3, 5, 4
SHAPES = {"features": (C,), "maps": (C, 3, 2)}
# Fractional, at both ends, and outside of them.
VALUES = [0.3, 2.7, 3.999, 1.5, 0.01]
WIDTHS = {"linear": {}, "gaussian": {"sigma": 0.75}}


def a_delay(values=VALUES, dtype=torch.float64, **settings):
    layer = pl.Delay(len(values), D, **settings).to(dtype)
    layer.delay.data = torch.tensor(values, dtype=dtype)
    return layer


def an_input(shape=(C,), dtype=torch.float64, density=0.4):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(T, N, *shape, generator=generator, dtype=dtype)
    return x * (torch.rand(x.shape, generator=generator) < density)


def looped(x, delay, kernel="linear", sigma=1.0):
    """The definition, one value of one channel at a time; `delay` [C] carries gradients."""
    outputs = []
    for t in range(T):
        channels = []
        for c in range(C):
            d = delay[c].clamp(0, D)
            if kernel == "linear":
                shares = [(lag, torch.relu(1 - (lag - d).abs())) for lag in range(D + 1)]
            else:
                heights = [torch.exp(-((lag - d) ** 2) / (2 * sigma**2)) for lag in range(D + 1)]
                shares = [(lag, height / sum(heights)) for lag, height in enumerate(heights)]
            channels.append(sum((x[t - lag, :, c] * share for lag, share in shares if lag <= t), 0 * x[0, :, c]))
        outputs.append(torch.stack(channels, 1))
    return torch.stack(outputs)


def values_and_gradients(run, x, *parameters):
    x = x.clone().requires_grad_()
    y = run(x)
    weight = torch.rand(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *parameters])]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
@pytest.mark.parametrize("kind", SHAPES)
def test_values_and_all_gradients_are_a_plain_loops(kind, kernel, backend):
    x, layer = an_input(SHAPES[kind]), use_backend(a_delay(kernel=kernel, **WIDTHS[kernel]), backend)
    plain = layer.delay.detach().clone().requires_grad_()
    expected = values_and_gradients(lambda x: looped(x, plain, kernel, 0.75), x, plain)
    torch.testing.assert_close(values_and_gradients(layer, x, layer.delay), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_at_a_whole_delay_the_gradient_is_that_of_the_two_steps_around_it(backend):
    """snnTorch's form has x[t-d-1] - x[t-d+1] there, and (1 - |lag - d|)+ none."""
    x, layer = an_input(), use_backend(a_delay([1.0, 2, 0, 3, 4]), backend)
    y = layer(x)
    (found,) = torch.autograd.grad(y.sum(), layer.delay)
    at = lambda lag, c: x[: T - lag, :, c].sum()  # noqa: E731
    # At 4, the end, the interval before it counts; at 0 a later spike may be lost at the end of the sequence.
    expected = [at(min(d, D - 1) + 1, c) - at(min(d, D - 1), c) for c, d in enumerate([1, 2, 0, 3, 4])]
    expected[2] = 0.0 if expected[2] > 0 else expected[2]
    expected[4] = 0.0 if expected[4] < 0 else expected[4]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_a_delay_that_left_its_range_can_return():
    layer = a_delay([-0.5, -0.5, D + 0.5, D + 0.5, 1.0])
    x = torch.zeros(T, N, C, dtype=torch.float64)
    x[2] = 1
    y = layer(x)
    weight = torch.arange(T, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, -1, 1, -1, 1])  # later is better
    (found,) = torch.autograd.grad((y * weight).sum(), layer.delay)
    assert y[2, 0, 0] == 1
    assert y[2 + D, 0, 2] == 1
    # Descent goes against the gradient: one that is positive at 0 leads out, and so does a negative one at D.
    torch.testing.assert_close(found, torch.tensor([0.0, -1, 1, 0, 1], dtype=found.dtype) * N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spikes_are_the_references_to_the_bit(dtype):
    x = (an_input((C, 3, 2)) > 0).to(dtype)
    layer = a_delay(dtype=torch.float32)
    assert torch.equal(use_backend(layer, "cpu")(x), use_backend(layer, "reference")(x))
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
@pytest.mark.parametrize("kind", SHAPES)
def test_single_steps_are_the_sequences(kind, kernel, rounds):
    x, layer = an_input(SHAPES[kind]), nn.Sequential(a_delay(kernel=kernel, rounds=rounds)).eval()
    state = None
    for frame, expected in zip(x, layer[0](x), strict=True):
        y, state = pl.step(layer, frame, state)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert state["0"].shape == (N, D, *SHAPES[kind])


def test_a_held_input_begins_at_the_delay():
    layer = a_delay([0.0, 1, 2, 3, 4])
    y = layer(torch.ones(1, N, C, dtype=torch.float64), T)
    assert torch.equal(y[:, 0].sum(0), torch.tensor([T, T - 1, T - 2, T - 3, T - 4], dtype=torch.float64))


def test_rounded_delays_keep_spikes_in_evaluation_alone():
    x, layer = (an_input() > 0).double(), a_delay(rounds=True)
    assert not layer.keeps_spikes(True)
    assert ((layer(x) > 0) & (layer(x) < 1)).any()
    layer.eval()
    assert layer.keeps_spikes(True)
    assert not layer.keeps_spikes(False)
    assert torch.equal(layer(x), looped(x, layer.delay.round()).detach())
    assert not a_delay().eval().keeps_spikes(True)


def test_initial_delays_are_drawn_evenly_or_set():
    torch.manual_seed(0)
    drawn = pl.Delay(4000, 20).delay
    assert drawn.min() >= 0
    assert drawn.max() <= 20
    assert abs(drawn.mean() - 10) < 0.3
    assert pl.Delay(2, 20, init_delay=3.0).delay.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_delay": 0}, "max_delay must be a whole number"),
        ({"max_delay": 3, "kernel": "square"}, "kernel must be one of linear, gaussian"),
        ({"max_delay": 3, "init_delay": 3.5}, "init_delay must be from 0 to max_delay = 3"),
        ({"max_delay": 3, "init_delay": float("nan")}, "init_delay must be from 0"),
        ({"max_delay": 3, "kernel": "gaussian", "sigma": 0.0}, "sigma must be above 0"),
        ({"max_delay": 3, "kernel": "gaussian", "sigma": -1.0}, "sigma must be above 0"),
        ({"max_delay": 3, "kernel": "gaussian", "sigma": "a"}, "sigma must be a number, got 'a'"),
        ({"max_delay": 3, "sigma": 2.0}, "sigma = 2.0 is the width of a Gaussian: give kernel=gaussian"),
        ({"max_delay": 3, "init_delay": True}, "init_delay must be a number, got True"),
        ({"max_delay": 3, "rounds": "no"}, "rounds must be one of True, False, got 'no'"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        pl.Delay(4, **arguments)


def test_inputs_of_other_channels_are_refused():
    with pytest.raises(UserError, match=r"5 channels takes \[T, N, C, \*\], got \[11, 3, 4\]"):
        a_delay()(torch.zeros(T, N, 4))


@pytest.mark.parametrize("kept", [(N, 2, 5), (N + 1, 3, 5)])
def test_a_state_of_another_delay_or_of_other_samples_is_refused(kept):
    net = nn.Sequential(pl.Delay(5, 3))
    with pytest.raises(UserError, match=r"the state of a delay must be \[3, 3, 5\], got"):
        pl.step(net, torch.zeros(N, 5), {"0": torch.zeros(kept)})


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_delay_that_is_not_a_number_gives_no_numbers(backend):
    """It once wrote behind the end of the output."""
    layer = use_backend(a_delay([float("nan"), 0.5, 0.5, 0.5, float("inf")], torch.float32), backend)
    x = torch.ones(T, N, C, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y[D:, :, 0].isnan().all()
    assert not y[:, :, 1:].isnan().any()
    assert torch.equal(y[D:, 0, 4], torch.ones(T - D))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_other_types_are_computed_by_the_reference(dtype):
    x = torch.arange(T * N * C).reshape(T, N, C) % 3
    layer = a_delay([0.5] * C, torch.float32)
    layer = layer.to(dtype) if dtype.is_floating_point else layer
    expected = looped(x.double(), torch.full((C,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(layer(x.to(dtype)).double(), expected)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_no_samples_give_no_outputs(backend, kernel):
    for kind in SHAPES.values():
        assert use_backend(a_delay(kernel=kernel), backend)(torch.zeros(T, 0, *kind).double()).shape == (T, 0, *kind)


def test_a_gaussian_narrows_to_a_single_lag():
    layer = a_delay([1.0, 2, 3, 0, 4], kernel="gaussian")
    layer.sigma.fill_(0.0)
    torch.testing.assert_close(layer(an_input()), looped(an_input(), layer.delay).detach())


# --- in the notation


STRUCTURE = "RFC16-PLIF-DELAY(max_delay=3)-FC12-PLIF-DELAY(max_delay=2,kernel=gaussian)-FC4-LI"


def a_network(structure=STRUCTURE, steps=8):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((6,), 4, steps, structure=structure)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(2).add_(0.4)
    return net


def test_a_structure_with_delays_is_written_as_it_is_read():
    text = "c4k3s1-BN-PLIF-DELAY(max_delay=2)-c4k3s1-BN-DELAY(max_delay=3)-PLIF-DELAY(max_delay=1,rounds=true)-"
    text += "DP-FC8-PLIF-FC3"
    assert str(parse(text)) == text
    net = pl.SpikingNetwork((2, 8, 8), 3, 4, structure=text)
    assert [(n, len(m.delay)) for n, m in net.named_modules() if isinstance(m, pl.Delay)] == [
        ("encoder.delay1", 4),
        ("encoder.delay2", 4),
        ("encoder.delay3", 4),
    ]


@pytest.mark.parametrize(
    ("structure", "says"),
    [
        ("FC8-PLIF-DELAY-FC4", "delay1: DELAY needs max_delay"),
        ("FC8-PLIF-DELAY(steps=3)-FC4", "steps"),
        ("FC8-PLIF-DELAY(max_delay=3,init_delay=9)-FC4", "init_delay must be from 0 to max_delay = 3"),
        ("FC8-PLIF-FC4-PLIF-DELAY(max_delay=3)", r"a layer must follow DELAY\(max_delay=3\)"),
        ("FC8-PLIF-FC4-DELAY(max_delay=3)", "DELAY must stand before an FC layer or a convolution"),
        ("FC8-PLIF-DP-DELAY(max_delay=3)-FC4", "DP must stand before an FC layer"),
    ],
)
def test_what_a_structure_cannot_mean_is_refused(structure, says):
    with pytest.raises(UserError, match=says):
        pl.SpikingNetwork((6,), 4, 8, structure=structure)


def test_a_delay_is_refused_where_no_gradient_passes_between_steps():
    with pytest.raises(UserError, match="through_time=False lets no gradient pass"):
        pl.SpikingNetwork((6,), 4, 8, structure=STRUCTURE, through_time=False)


def test_a_deployed_network_and_its_steps_are_the_networks():
    net, x = a_network().eval(), (torch.rand(8, 5, 6) < 0.4).float()
    expected = net(x)
    assert expected.std() > 0
    frozen = deployed(net)
    torch.testing.assert_close(frozen(x), expected)
    state = None
    for frame, votes in zip(x, expected, strict=True):
        y, state = frozen.step(frame, state)
        torch.testing.assert_close(y, votes)
    assert [*state] == [*pl.step(net, x[0])[1]]


@pytest.mark.parametrize("name", ["sequence", "step"])
def test_pt2_and_onnx_are_the_network(name, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="extra `export`")
    pytest.importorskip("onnxscript", reason="extra `export`")
    net, x = a_network(steps=4).eval(), (torch.rand(4, 3, 6) < 0.4).float()
    inputs: tuple[torch.Tensor, ...]
    if name == "sequence":
        program, inputs, expected = to_export(net, static=False), (x,), [net(x)]
    else:
        state = pl.step(net, x[0])[1]
        votes, after = pl.step(net, x[1], state)
        flat = lambda states: [value for of in states.values() for value in as_tuple(of)]  # noqa: E731
        program, inputs, expected = to_export_step(net), (x[1], *flat(state)), [votes, *flat(after)]
    torch.export.save(program, tmp_path / "net.pt2")
    found = torch.export.load(tmp_path / "net.pt2").module()(*inputs)
    names = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(len(expected))]
    save_onnx(program, tmp_path / "net.onnx", names)
    arrays = {key: value.detach().numpy() for key, value in zip(names[0], inputs, strict=True)}
    by_onnx = ort.InferenceSession(tmp_path / "net.onnx").run(None, arrays)
    for one, other, wanted in zip(found if name == "step" else [found], by_onnx, expected, strict=True):
        torch.testing.assert_close(one, wanted.detach())
        torch.testing.assert_close(torch.from_numpy(other), wanted.detach())


def test_layers_behind_whole_delays_stay_event_driven():
    structure = "FC64-PLIF-DELAY(max_delay=3,rounds={})-FC64-PLIF-FC4-PLIF"
    forms = [deployed(a_network(structure.format(rounds)).eval()).forms["fc2"] for rounds in ("true", "false")]
    assert forms == ["event-driven", "as it is"]
    net = use_backend(a_network(structure.format("true")).eval(), "cpu", "always")
    net((torch.rand(8, 5, 6) < 0.5).float())
    assert net.forms()["fc2"].startswith("event-driven")


def test_delays_train_to_the_task():
    """A spike of the first channel must meet one of the second, six steps later."""
    torch.manual_seed(0)
    layer = pl.Delay(2, 10, init_delay=2.0)
    x = torch.zeros(30, 20, 2)
    x[5, :, 0], x[11, :, 1] = 1, 1
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    kernel = torch.exp(-(torch.arange(-12.0, 13) ** 2) / 32)  # what each spike leaves, so that they see each other
    for _ in range(150):
        traces = nn.functional.conv1d(layer(x).permute(1, 2, 0).reshape(-1, 1, 30), kernel[None, None], padding=12)
        first, second = traces.view(20, 2, 30).unbind(1)
        loss = (first - second).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, second = layer.used().tolist()
    assert abs(first - second - 6) < 0.1


def test_cost_has_a_row_of_a_delays_memory():
    found = cost(a_network(), torch.rand(8, 2, 6))
    rows = {row.layer: row for row in found.layers}
    assert not found.not_counted
    row = rows["delay1"]
    assert (row.state, row.states, row.updates, row.dense, row.parameters) == (3 * 16, 3, 8 * 16, 0, 16)
    assert row.traffic == 8 * 8 * 16  # each value is written and read once, whatever the delay
    assert rows["fc1"].traffic == rows["fc1"].actual + 8 * 8 * 16


def test_nir_has_whole_delays_and_no_parts_of_a_step():
    nir = pytest.importorskip("nir", reason="extra `nir`")
    net = a_network("FC6-PLIF-DELAY(max_delay=3,rounds=true)-FC4-PLIF").eval()
    node = to_nir(net, dt=1e-3).nodes["delay1"]
    assert isinstance(node, nir.Delay)
    torch.testing.assert_close(torch.from_numpy(node.delay), net.layers()["delay1"].delay.detach().round() * 1e-3)
    with pytest.raises(UserError, match="delay1 delays by parts of a time-step"):
        to_nir(a_network("FC6-PLIF-DELAY(max_delay=3)-FC4-PLIF").eval())


def test_training_logs_the_mean_delay_of_each_layer():
    net = a_network()
    found = {name: values["delay"] for name, values in learned_by_layers(net) if "delay" in values}
    assert [*found] == ["delay1", "delay2"]
    assert torch.equal(found["delay1"], net.layers()["delay1"].delay.detach().clamp(0, 3))


def test_threads_and_silent_rows_change_nothing(monkeypatch):
    monkeypatch.setattr(layout, "WORTH_THREADS", 0)
    x, threads = an_input((C,), torch.float32), torch.get_num_threads()
    wide = torch.cat([x] * 40, 1)
    layer = use_backend(a_delay(dtype=torch.float32), "cpu")
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(values_and_gradients(layer, wide, layer.delay))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(results[0][0], results[1][0])


def firing(text, **settings):
    """A network with neurons that fire at a random input."""
    torch.manual_seed(0)
    net = pl.SpikingNetwork((20,), 3, T, structure=text, **settings)
    for layer in (net.classifier.fc1, net.classifier.fc2):
        nn.init.normal_(layer.fc.weight, mean=0.1, std=0.5)
    return net


def results(net, x):
    """Votes, gradients and the forms of a training step, with the same dropout each time."""
    torch.manual_seed(1)
    net.zero_grad()
    votes = net(x)
    votes.square().sum().backward()
    return [votes.detach(), *(p.grad for p in net.parameters())], net.forms()


@pytest.mark.parametrize("end", ["FC70b-PLIF-FC3", "RFC70-PLIF-FC3", "FC70-BN-PLIF-FC3", "FC3b"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_fc_layer_of_delayed_spikes_adds_where_a_neuron_fired(end, dropout):
    text = f"FC96-PLIF-DELAY(max_delay=5)-DP-{end}"
    net = firing(text, dropout=dropout)
    x = torch.rand(T, 3, 20)
    dense, form = results(use_backend(net, "cpu", "never"), x)
    events, form_of_events = results(use_backend(net, "cpu", "always"), x)
    torch.testing.assert_close(events, dense, rtol=1e-4, atol=1e-5)
    assert form_of_events["fc2"].split(", ")[-1].startswith("event-driven at ")
    assert "fc2" not in form or not form["fc2"].split(", ")[-1].startswith("event-driven")


def test_an_fc_layer_of_delayed_spikes_is_the_delay_and_the_layer():
    x = (an_input((C,), torch.float32) > 0).float() * 1.25
    layer, fc = a_delay(dtype=torch.float32), nn.Linear(C, 7, bias=False)
    whole, late = layer.between()
    values = values_and_gradients(
        lambda x: linear_of_delayed(x, fc.weight, whole.long(), layer.between()[1], 1.25), x, fc.weight, layer.delay
    )
    expected = values_and_gradients(lambda x: fc(layer(x)), x, fc.weight, layer.delay)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert linear_of_delayed(x, fc.weight, whole.long(), late) is None  # spikes of another value
    one = linear_of_delayed(x[:1], fc.weight, whole.long(), late, 1.25)
    torch.testing.assert_close(one, fc(layer(x[:1])))


@pytest.mark.parametrize("kind", ["gaussian", "a hook", "rounds", "float64", "reference"])
def test_another_delay_runs_apart_from_the_layer(kind, monkeypatch):
    monkeypatch.setattr("plif_lightning.layers.plan.linear_of_delayed", None)
    settings = {"gaussian": ",kernel=gaussian", "rounds": ",rounds=true"}.get(kind, "")
    net = firing(f"FC96-PLIF-DELAY(max_delay=5{settings})-FC70-PLIF-FC3")
    use_backend(net, "reference" if kind == "reference" else "cpu", "always")
    if kind == "a hook":
        net.classifier.delay1.register_forward_hook(lambda module, given, output: 0 * output)
    x = torch.rand(T, 3, 20)
    if kind == "float64":
        net, x = net.double(), x.double()
    votes = net.train(kind != "rounds")(x)
    assert votes.any() != (kind == "a hook")
