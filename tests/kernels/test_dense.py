"""Products and convolutions in bfloat16 by way of float32, against exact ones."""

import itertools
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import plif_lightning as pl
from plif_lightning.kernels import dense, onednn
from plif_lightning.layers.plan import call_layer
from plif_lightning.network.comparing import SEEN_WRONG, Convolution


# PyTorch's own loops round sums, too, where oneDNN has no kernels.
@pytest.fixture(params=[True] if dense.WIDENS_BFLOAT16 else [True, False])
def widens(request, monkeypatch) -> bool:
    monkeypatch.setattr(dense, "WIDENS_BFLOAT16", request.param)
    return request.param


def narrow(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def assert_rounded(ours: Tensor, exact: Tensor) -> None:
    """Equal to the exact values rounded to bfloat16, where sums in float32 may tip the rounding."""
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-4)


def test_products_are_rounded_once(widens):
    torch.manual_seed(0)
    a, b, bias = narrow(5, 300), narrow(300, 7), narrow(7)
    exact = a.double() @ b.double()
    assert_rounded(dense.product(a, b), exact)
    assert_rounded(dense.linear(a, b.t(), bias), exact + bias.double())


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_gradients_match_float64(widens, stride):
    torch.manual_seed(0)
    x, weight, bias = narrow(3, 16, 6, 5), narrow(8, 16, 3, 3), narrow(8)
    sizes = {"stride": stride, "padding": 1}
    exact = [value.double().requires_grad_() for value in (x, weight, bias)]
    y = F.conv2d(*exact, **sizes)
    ours = [value.clone().requires_grad_() for value in (x, weight, bias)]
    found = dense.conv2d(*ours, **sizes)
    assert_rounded(found, y)

    grad = narrow(*y.shape)
    y.backward(grad.double())
    found.backward(grad)
    for value, expected in zip(ours, exact, strict=True):
        assert_rounded(value.grad, expected.grad)
    assert_rounded(dense.conv2d_input(x.shape, weight, grad, **sizes), exact[0].grad)
    of_weight = dense.conv2d_weight(x, weight.shape, grad, **sizes)
    assert of_weight.dtype == torch.float32
    torch.testing.assert_close(of_weight.double(), exact[1].grad, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding="same")])
def test_plain_layers_of_a_network_are_widened_under_autocast(widens, layer):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = call_layer(layer, x)
    layer.zero_grad()
    y.sum().backward()
    rounded = [value.detach().bfloat16().double() for value in (x, layer.weight, layer.bias)]
    if isinstance(layer, nn.Linear):
        assert_rounded(y, F.linear(*rounded))
    else:
        assert_rounded(y, F.conv2d(*rounded, padding="same", dilation=2, groups=2))
    assert layer.weight.grad.dtype == layer.weight.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3, 8, 16])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions_that_skip_pixels_have_exact_gradients(channels, stride):
    torch.manual_seed(0)
    x = torch.randn(4, channels, 8, 9).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(5, channels, 1, 1, requires_grad=True), torch.randn(5)
    exact = [value.detach().double() for value in (x, weight)]
    skipped = exact[0][:, :, ::stride, ::stride]
    y = dense.conv2d(x, weight, bias, stride=stride)
    expected = torch.einsum("nchw,oc->nohw", skipped, exact[1].flatten(1)) + bias.double()[:, None, None]
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)

    grad = torch.randn(y.shape)
    of_weight = torch.einsum("nchw,nohw->oc", skipped, grad.double())[:, :, None, None]
    of_input = torch.zeros_like(exact[0])
    of_input[:, :, ::stride, ::stride] = torch.einsum("nohw,oc->nchw", grad.double(), exact[1].flatten(1))
    y.backward(grad)
    for found, expected in (
        (x.grad, of_input),
        (weight.grad, of_weight),
        (dense.conv2d_weight(x.detach(), weight.shape, grad, stride=stride), of_weight),
        (dense.conv2d_input(x.shape, weight.detach(), grad, stride=stride), of_input),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_autocast_leaves_float64_alone(widens):
    layer, x = nn.Linear(6, 4).double(), torch.rand(2, 6, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = call_layer(layer, x)
    torch.testing.assert_close(y, layer(x))


def test_a_training_step_multiplies_no_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr(dense, "WIDENS_BFLOAT16", True)
    torch.manual_seed(0)
    net = pl.SpikingNetwork((1, 12, 12), 2, 2, n_conv=3, n_down=2, channels=8, fc_features=8)
    with torch.profiler.profile(record_shapes=True) as profile:
        with torch.autocast("cpu", torch.bfloat16):
            votes = net(torch.rand(4, 1, 12, 12))
        votes.float().sum().backward()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    products = ("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm")
    types = {(e["name"], *e["args"].get("Input type", ())) for e in events if e.get("name") in products}
    assert {name for name, *_ in types} >= {"aten::convolution", "aten::convolution_backward"}
    assert not [found for found in types if "c10::BFloat16" in found]


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("padding", range(4))
def test_single_pixel_map_equals_pytorch(kernel, padding):
    if kernel > 1 + 2 * padding:
        return
    x, weight = torch.rand(2, 16, 1, 1), torch.randn(3, 16, kernel, kernel)
    found = dense.conv2d(x, weight, stride=2, padding=padding)
    torch.testing.assert_close(found, F.conv2d(x, weight, stride=2, padding=padding))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("convolution", SEEN_WRONG, ids=str)
def test_what_onednn_gets_wrong_is_exact(convolution, dtype):
    torch.manual_seed(0)
    assert convolution._replace(dtype=dtype).difference() == ""


def test_a_network_of_dilated_depthwise_convolutions_has_the_gradients_of_float32():
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 32, 32), 4, 2, structure="c32k3s1-BN-PLIF-c32k3s1p2d2g32-BN-PLIF-AP-FC4b")
    x, label = (torch.rand(2, 6, 2, 32, 32) < 0.3).float() * 3, torch.arange(6) % 4
    conv, gradients = net.get_submodule("encoder.conv2.conv"), []
    for narrow in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            votes = net(x)
        F.cross_entropy(votes.mean(0), label).backward()
        gradients.append(conv.weight.grad.flatten().clone())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


# PyTorch's own convolution, for expected values
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid", (5, 3), (6, 4)])
@pytest.mark.parametrize("size", [(1, 2), (2, 5), (4, 1)])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 2), (1, 3, 1), (3, 1, 1), (3, 2, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_padding_stride_dilation_and_group_is_that_of_pytorch(padding, size, stride, dilation, groups, dtype):
    """Some taps in the middle step over the map; some paddings are other ones on two sides."""
    if padding == "same" and stride > 1:
        pytest.skip("PyTorch has no such convolution")
    if padding == "valid":
        size = (size[0] + 9, size[1] + 9)
    torch.manual_seed(0)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x, weight, bias = torch.randn(3, 16, *size), torch.randn(16, 16 // groups, 4, 3), torch.randn(16)
    given = [value.to(dtype) for value in (x, weight, bias)]
    exact, ours = ([v.to(t).clone().requires_grad_() for v in given] for t in (torch.float64, dtype))
    expected, found = F.conv2d(*exact, **settings), dense.conv2d(*ours, **settings)
    grad = torch.randn(found.shape).to(dtype)
    expected.backward(grad.double())
    found.backward(grad)
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    if not isinstance(padding, str):  # torch.nn.grad takes none
        pairs.append((dense.conv2d_weight(given[0], weight.shape, grad, **settings), exact[1].grad))
    for value, other in pairs:
        assert (value.double() - other).abs().max() <= (2**-7 if dtype == torch.bfloat16 else 1e-12) * other.abs().max()


TYPES = torch.float32, torch.bfloat16
KERNELS = (*((k, k) for k in range(1, 8)), (5, 3), (3, 5))
SIZES = tuple(itertools.product(range(1, 10), repeat=2))
CHANNELS = tuple(itertools.product((16, 128, 160), (16, 128)))
GROUPED = (*((c, c, 1) for c in (3, 8, 16, 24, 32, 40)), *((c, c, c) for c in (6, 16, 32, 64)),
            (32, 32, 2), (32, 32, 8), (48, 48, 2), (36, 72, 4), (32, 32, 16))  # fmt: skip
WIDE_SIZES = (8, 8), (5, 29), (29, 5), (28, 28), (29, 29), (33, 30)
CONVOLUTIONS = (
    *itertools.starmap(Convolution, itertools.product(KERNELS, SIZES, (1, 2, 3), CHANNELS, (False, True), TYPES)),
    # Dilated and grouped ones.
    *(
        Convolution(kernel, size, stride, (inputs, outputs), innermost, dtype, dilation, groups)
        for kernel, size, stride, dilation, (inputs, outputs, groups), innermost, dtype in itertools.product(
            ((1, 1), (3, 3), (3, 1), (5, 5)), WIDE_SIZES, (1, 2), (1, 2, 3), GROUPED, (False, True), TYPES
        )
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", dict.fromkeys(one.kernel for one in CONVOLUTIONS))
def test_every_convolution_of_the_grid_is_exact(kernel):
    torch.manual_seed(0)
    assert not [wrong for one in CONVOLUTIONS if one.kernel == kernel and (wrong := one.difference())]


def test_few_pixels_of_a_convolution_with_groups_are_no_product_of_patches():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 512, 2, 2), torch.randn(512, 256, 3, 3)
    torch.testing.assert_close(
        dense.conv2d(x, weight, padding=1, groups=2), F.conv2d(x, weight, padding=1, groups=2), rtol=1e-4, atol=1e-3
    )


# Maps of 1 to 3 pixels, of which the ends of a kernel may see padding only.
@pytest.mark.parametrize(("size", "stride"), [((1, 1), 1), ((2, 2), 2), ((2, 3), 1), ((1, 3), (1, 2))])
@pytest.mark.parametrize("kernel", [3, 5])
def test_few_pixels_are_convolved_by_patches(size, stride, kernel):
    torch.manual_seed(0)
    x = torch.randn(4, 256, *size, dtype=torch.float64)
    weight, bias = torch.randn(256, 256, kernel, kernel, dtype=torch.float64), torch.randn(256, dtype=torch.float64)
    sizes = {"stride": stride, "padding": kernel // 2}
    assert dense.takes_patches(x, weight, stride)
    found = []
    for convolve in (dense.conv2d, F.conv2d):
        given = [value.clone().requires_grad_() for value in (x, weight, bias)]
        y = convolve(*given, **sizes)
        y.backward(torch.ones_like(y))
        found.append([y, *(value.grad for value in given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_single_pixel_maps_have_bfloat16_gradients(backend):
    structure = "c16k3s1-BN-PLIF-MPk2s2-ADD(c16k3s2-BN-PLIF|c16k1s2-BN-PLIF)-FC10"
    for seed in range(5):
        torch.manual_seed(seed)
        net, x = pl.SpikingNetwork((2, 4, 4), 10, 3, structure=structure, backend=backend), torch.rand(3, 8, 2, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            net(x).square().sum().backward()
        assert all(p.grad is None or p.grad.abs().max() < 1e3 for p in net.parameters())


def test_small_maps_use_strided_patches():
    torch.manual_seed(0)
    x, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 256, 4, 3), (256, 256, 3, 3)))
    sizes = {"padding": 2, "dilation": 2}
    assert dense.takes_patches(x, weight, 1)
    torch.testing.assert_close(dense.conv2d(x, weight, **sizes), F.conv2d(x, weight, **sizes))


@pytest.mark.parametrize("padding", [0, (0, 0), "same", "valid"])
def test_a_1x1_convolution_at_a_stride_skips_its_pixels_before_onednn(padding):
    x = torch.rand(2, 3, 8, 6)
    skipped, settings = onednn.without_stride(x, (4, 3, 1, 1), {"stride": (2, 3), "padding": padding})
    assert torch.equal(skipped, x[:, :, ::2, ::3])
    assert settings == {"stride": 1, "padding": padding}
    for others in ({"stride": 1}, {"stride": 2, "padding": 1}):
        assert onednn.without_stride(x, (4, 3, 1, 1), others)[0] is x
    assert onednn.without_stride(x, (4, 3, 3, 3), {"stride": 2})[0] is x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own, at its first forward derivative
def test_large_products_by_onednn_have_all_derivatives(monkeypatch):
    monkeypatch.setattr(dense, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(dense, "_LARGE_WITH_GRADIENTS", 64)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8, 12), torch.randn(5, 12), torch.randn(5)
    derivatives = []
    for function, dtype in ((dense.linear, torch.float32), (F.linear, torch.float64)):
        a, b, c = (value.to(dtype).requires_grad_() for value in (x, weight, bias))
        y = function(a, b, c)
        first = torch.autograd.grad(y.square().sum(), (a, b, c), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (a, b, c))
        of_rows = torch.func.vmap(function, (0, None, None))(a, b, c)
        forward = torch.func.jvp(lambda a, function=function, b=b, c=c: function(a, b, c), (a,), (a.cos(),))[1]
        derivatives.append([y, *first, *second, of_rows, forward])
    assert "Product" in str(dense.linear(x.requires_grad_(), weight, None).grad_fn.next_functions[0][0])
    for ours, exact in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)


def test_a_product_is_added_into_a_given_tensor(monkeypatch):
    monkeypatch.setattr(dense, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(dense, "_LARGE", 64)
    y, a, b, out = torch.randn(9, 7), torch.randn(9, 20), torch.randn(20, 7), torch.empty(9, 7)
    assert dense.add_product(y, a, b, out=out) is out
    torch.testing.assert_close(out, y + a @ b, rtol=1e-5, atol=1e-5)
