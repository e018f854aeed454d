"""The notation of Table S1: what is read, what is refused, and that writing is the inverse of reading."""

import contextlib
import re
from dataclasses import asdict, dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.errors import UserError
from plif_lightning.structure import (
    FC,
    Conv,
    LayerSpec,
    Neurons,
    Numbers,
    Pool,
    Readout,
    Residual,
    Structure,
    Votes,
    layer_specs,
    notation,
    numbers_of,
    parse,
    resolve_structure,
)
from plif_lightning.structure import layers as kinds_of_layers
from plif_lightning.structure.base import NotationBase, Part, PlacedBase
from plif_lightning.structure.layers import Delay, is_fired, neurons_in
from plif_lightning.structure.shapes import every_layer

PAPER = "{{c256k3s1-BN-PLIF}*3-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10"
SEW = "c8k7s2-BN-PLIF-MPk3s2p1-{ADD({c8k3s1-BN-PLIF}*2)}*2-ADD(c9k3s2-BN-PLIF-c9k3s1-BN-PLIF|c9k1s2-BN-PLIF)-AP-FC10b"


@pytest.mark.parametrize(
    "text",
    [
        PAPER,
        SEW,
        "c4k1x5s1g2-BN-PLIF-FC3",
        "c4k3s1-CLIF(k=0.3,v_reset=-0.5)-AP-DP(0.25)-FC4-my_neurons.Own(rate=1e-05,learn_threshold=true)-APk2s2",
        "c4k5s2p1d2-BN-ADD(LIF-c4k3s1-BN)-IF-APk3s2p1-FC2-LI(init_tau=4.0)",
        "AND(c2k3s1-BN-PLIF|c2k1s1-PLIF)-IAND(c2k3s1-BN-PLIF)-MP-FC2",
        "FC10-PLIF-FC3",
    ],
)
def test_structure_text_round_trip(text):
    assert str(parse(text)) == text


def test_the_numbers_of_table_1_have_their_defaults():
    assert str(resolve_structure(None, {}, 10)) == "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10"


def test_repetitions_are_written_out_and_padding_of_half_is_left_out():
    assert parse("{c4k3s1p1-BN-PLIF-MPk2s2}*2-FC3") == parse("c4k3-BN-PLIF-MPk2s2-c4k3s1-BN-PLIF-MPk2s2-FC3")
    assert parse("{{c4k3s1}*2-MPk2s2}*3-FC3") == parse("{c4k3s1-c4k3s1-MPk2s2}*3-FC3")


sizes = st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda s: s[0] != s[1])
values = st.booleans() | st.none() | st.integers(-9, 99) | st.floats(-1e9, 1e9) | st.sampled_from(["atan", "soft"])
arguments = st.lists(
    st.tuples(st.sampled_from(["init_tau", "k", "reset", "b_2"]), values), max_size=2, unique_by=lambda a: a[0]
).map(tuple)
neurons = st.builds(Neurons, st.sampled_from(["PLIF", "LIF", "Synaptic", "own.Neuron", "a.b.C"]), arguments)
kinds = st.sampled_from(["MP", "AP"])
pools = st.builds(Pool, kinds, st.integers(2, 9), sizes, st.integers(0, 1))


@st.composite
def convs(draw):
    kernel = draw(sizes)
    half = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    half = half[0] if isinstance(half, tuple) and half[0] == half[1] else half
    padding = draw(st.none() | sizes | st.just(0))
    own = draw(st.none() | neurons)
    pool = None if own is None else draw(st.none() | pools)
    sizes_ = (draw(sizes), None if padding == half else padding, draw(sizes), draw(st.integers(1, 4)))
    return Conv(draw(st.integers(1, 2000)), kernel, *sizes_, draw(st.booleans()), own, pool)


def in_order(layers):
    """Layers whose text reads as these layers: nothing in them would belong to the one before."""
    found = []
    for layer in layers:
        last = found[-1] if found else None
        bare = isinstance(last, (Conv, Residual)) and last.neurons is None
        pooled = isinstance(last, Conv) and last.neurons is not None and last.pool is None
        if (bare and isinstance(layer, Neurons)) or (pooled and isinstance(layer, Pool) and layer.kernel is not None):
            continue
        found.append(layer)
    return tuple(found)


def residuals(inside):
    branches = st.lists(inside, min_size=1, max_size=3).map(in_order).filter(bool)
    return st.builds(Residual, st.just("ADD"), branches, st.just(()) | branches)


layers = st.recursive(convs() | pools | kinds.map(Pool) | neurons, residuals, max_leaves=6)
drops = st.sampled_from([None, 0.0, 0.25])
fcs = st.lists(
    st.builds(FC, st.integers(1, 999), st.booleans(), drops, neurons, st.booleans(), st.booleans()), max_size=3
)


@st.composite
def structures(draw):
    encoder = in_order(draw(st.lists(layers, max_size=4)))
    hidden = draw(fcs)
    per_class = draw(st.none() | st.integers(1, 9))
    if per_class is None:
        own, norm = draw(st.none() | neurons), draw(st.booleans())
        last = [FC(draw(st.integers(1, 99)), draw(st.booleans()), draw(drops), own, norm=norm)]
        if last[0].neurons is None and draw(st.booleans()):
            last.append(draw(st.just(Readout("LAST")) | st.builds(Readout, st.just("LI"), arguments)))
    else:
        fc = FC(per_class * draw(st.integers(1, 9)), draw(st.booleans()), draw(drops), draw(neurons))
        last = [fc, Votes(per_class)]
    return Structure((*encoder, *hidden, *last))


@given(structures())
def test_reading_is_the_inverse_of_writing(structure):
    text = str(structure)
    assert parse(text) == structure
    assert str(parse(text)) == text


@given(st.text(alphabet="cksBNPLIF-{}*()|=,.0123ADM ", max_size=40))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "character", "message"),
    [
        ("", 1, "expected a convolution"),
        ("c64k3s1-BM-PLIF", 9, "BM is no layer: did you mean BN"),
        ("c64k3s1-BN-PLFI-FC10", 12, "PLFI is no layer: did you mean PLIF"),
        ("c64k3s1-BN-plif-FC10", 12, "plif is no layer: did you mean PLIF"),
        ("c64k3s1-BN-PLIF", 16, "a network ends with FC layers"),
        ("c64-BN", 1, "c64 is no layer"),
        ("BN-FC10", 1, "BN must follow a convolution or an FC layer"),
        ("FC9-BN-BN", 8, "BN must follow a convolution or an FC layer"),
        ("FC9-PLIF-BN-FC9", 10, "BN must follow a convolution or an FC layer"),
        ("c4k3s1-BN-BN-FC10", 11, "BN must follow a convolution"),
        ("{c64k3s1-FC10", 14, "expected }* and how often, got the end"),
        ("{c64k3s1}*0-FC10", 11, "must be at least 1, got 0"),
        ("(" * 30, 1, "expected a convolution"),
        ("ADD(" * 30, 121, "expected a convolution"),
        ("ADD(c3k3s1|FC3)-FC10", 12, "an FC layer cannot be a part of a residual block"),
        ("ADD(c3k3s1-BN-PLIF-FC10", 20, "an FC layer cannot be"),
        ("AND(c4k3s1-BN)-FC10", 1, "AND needs spikes, and its branch ends without neurons"),
        ("AND(c4k3s1-BN-MPk3s1p1)-FC10", 1, "AND needs spikes, and its branch ends without neurons"),
        ("IAND(c4k3s1-PLIF|APk2s2)-FC10", 1, "IAND needs spikes, and its shortcut"),
        ("FC100-FC10", 7, "FC100 before it has no neurons"),
        ("FC100-PLIF-APk7s7", 12, "the votes do not divide: the 100 of FC100 are no multiple of 7"),
        ("FC100-APk10s10", 7, "the votes must follow neurons"),
        ("FC100-PLIF-MPk10s10", 12, "only the votes may follow"),
        ("FC100-PLIF-PLIF", 12, "neurons must follow an FC layer"),
        ("FC9-PLIF-c4k3s1-FC9", 10, "c4k3s1 must come before the first FC layer"),
        ("DP-c4k3s1-FC9", 1, "DP must stand before an FC layer"),
        ("DP(1.5)-FC9", 4, "at least 0 and below 1"),
        ("c4k3s1-PLIF(a=1,a=2)-FC1", 17, "a is given twice"),
        ("c4k3s1-PLIF(=1)-FC1", 13, "expected the name of an argument"),
        ("c4k3s1-PLIF(a=nan)-FC1", 15, "must be finite"),
        (f"c4k3s1-PLIF(a=1{'0' * 400})-FC1", 15, "must be finite"),
        ("c4k3s1-PLIF(a=$)-FC1", 15, "must be a number, true, false, null or a name"),
        ("c4k3s1-PLIF(a='b')-FC1", 15, "a name without quotes"),
        ("c4k3s1-MPk2s2p2-FC1", 8, "at most half of its window"),
        ("c4k0s1-FC1", 1, "the kernel must be from 1 to 10000, got 0"),
        ("FC10-LI-FC3", 9, "nothing may follow"),
        ("FC10-PLIF-LI", 11, "LI reads an FC layer without neurons"),
        ("c4k3s1 -FC3", 7, "expected - or the end, got ' '"),
    ],
)
def test_a_mistake_is_pointed_at(text, character, message):
    with pytest.raises(UserError) as error:
        parse(text)
    first, shown, arrow = str(error.value).split("\n")
    assert first.startswith(f"structure, character {character}: ")
    assert message in first
    # The arrow stands under the character.
    assert shown[: len(arrow) - 1].endswith(text[: character - 1][-50:])
    assert arrow.strip() == "^"


def test_60_characters_of_a_long_structure_are_shown_on_both_sides_of_a_mistake():
    text = "c4k3s1-" * 10 + "?" + "-c4k3s1" * 10
    with pytest.raises(UserError) as error:
        parse(text)
    _, shown, arrow = str(error.value).split("\n")
    assert shown == f"    ...{text[10:130]}..."
    assert shown[len(arrow) - 1] == "?"


# --- numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (PAPER, Numbers(3, 2, 2, 256, 2048, 10)),
        ("c64k3s1-BN-PLIF-MPk2s2-c128k3s1-BN-PLIF-MPk2s2-DP-FC20-PLIF-APk2s2", Numbers(1, 2, 1, (64, 128), 2048, 2)),
        (PAPER.replace("PLIF", "LIF"), None),
        (PAPER.replace("DP-", "", 1), None),
        ("c64k3s1-BN-PLIF-MPk2s2-DP-FC20-PLIF-DP-FC30-PLIF-DP-FC20-PLIF-APk2s2", None),
        (SEW, None),
        ("c4k3s1-BN-PLIF-MPk2s2-FC3", None),
        ("c4k3s1-BN-PLIF-FC3-PLIF-APk1s1", None),
    ],
)
def test_numbers_of_a_paper_like_structure(text, numbers):
    assert numbers_of(parse(text)) == numbers
    if numbers is not None:
        classes = parse(text).layers[-2].features // numbers.votes_per_class
        assert resolve_structure(None, asdict(numbers), classes) == parse(text)


def test_numbers_override_a_structure():
    assert str(resolve_structure(PAPER, {"channels": 8, "n_conv": 1}, 10)) == (
        "{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10"
    )
    assert resolve_structure(PAPER, {"channels": None}, 3) == parse(PAPER)
    assert str(resolve_structure(None, {"channels": [4, 6], "fc_features": 9}, 2)).startswith(
        "c4k3s1-BN-PLIF-MPk2s2-c6k3s1"
    )
    with pytest.raises(UserError, match="channels cannot be set beside a structure that is not like the paper's"):
        resolve_structure(SEW, {"channels": 8}, 10)
    with pytest.raises(UserError, match="channels must be one number or n_down = 2 of them, got 3"):
        resolve_structure(None, {"channels": [4, 6, 8]}, 10)
    for wrong in (0, -1, [], [4, 0], True, 2.5):
        with pytest.raises(UserError, match="channels must be at least 1"):
            resolve_structure(None, {"channels": wrong}, 10)


# --- shapes


def test_names_and_shapes_are_in_the_order_of_the_notation():
    found = layer_specs(parse(SEW), (3, 32, 32), 10)
    assert [(one.name, one.after) for one in found] == [
        ("conv1", (8, 8, 8)), ("res1", (8, 8, 8)), ("res2", (8, 8, 8)), ("res3", (9, 4, 4)), ("pool1", (9, 1, 1)),
        ("fc1", (10,)),
    ]  # fmt: skip
    last = found[3]
    assert [one.name for one in (*last.branch, *last.shortcut)] == ["conv6", "conv7", "conv8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{c4k3s1-BN-PLIF-MPk2s2}*4-FC10", "MPk2s2 of conv3 leaves nothing of a map of 2x1"),
        ("c4k7s1p0-BN-PLIF-c4k3s1-FC10", r"conv1 \(c4k7s1p0\) leaves nothing of a map of 8x6"),
        ("ADD(c4k3s1-BN-PLIF)-FC10", r"res1, ADD\(c4k3s1-BN-PLIF\): .* of 4x8x6, .* with 3x8x6: add .*\|c4k1s1-BN"),
        ("ADD(c3k3s2-BN-PLIF|c3k1s1-PLIF)-FC10", "its branch ends with maps of 3x4x3, its shortcut with 3x8x6"),
        ("c4k3s1g2-BN-PLIF-FC10", r"conv1 \(c4k3s1g2\): 2 groups do not divide its 3 input channels"),
        ("c5k3s1-PLIF-c6k3s1g4-PLIF-FC10", "conv2 .*: 4 groups do not divide its 6 output channels"),
        ("c4k3s1-BN-PLIF-DP-FC20-PLIF-APk10s10", r"FC20, gives 2 classes \(10 for each class\), but the data has 10"),
        ("c4k3s1-BN-PLIF-FC3", "FC3, gives 3 classes, but the data has 10: pass .* 'c4k3s1-BN-PLIF-FC10'"),
    ],
)  # fmt: skip
def test_a_structure_that_does_not_fit_is_refused_by_its_layer(text, message):
    with pytest.raises(UserError, match=message):
        layer_specs(parse(text), (3, 8, 6), 10)


@dataclass(frozen=True)
class Squeeze(PlacedBase, Part):
    """`SQ`: the mean of all channels."""

    prefix, takes_maps, example = "squeeze", True, "SQ"
    pattern = re.compile("SQ")

    @classmethod
    def read(cls, reader, at, match):
        return cls()

    def join(self, group, at):
        group.append(at, self, "SQ")

    def place(self, placing, name, before, spikes):
        return LayerSpec(name, self, before, (1, *before[1:]))

    def is_fired(self, spikes):
        return False

    def __str__(self):
        return "SQ"


def test_a_layer_of_a_new_kind_says_all_that_its_notation_needs(monkeypatch):
    parts = (Squeeze, *kinds_of_layers.PARTS)
    monkeypatch.setattr(kinds_of_layers, "PARTS", parts)
    monkeypatch.setattr(notation, "PARTS", parts)
    structure = parse("{c4k3s1-BN-PLIF-SQ}*2-FC10")
    assert parse(str(structure)) == structure
    specs = layer_specs(structure, (3, 8, 6), 10)
    assert [(spec.name, spec.after, spec.from_neurons) for spec in specs[1:3]] == [
        ("squeeze1", (1, 8, 6), True),
        ("conv2", (4, 8, 6), False),
    ]
    with pytest.raises(UserError, match="SQ must come before the first FC layer"):
        parse("c4k3s1-FC10-PLIF-SQ-FC10")
    with pytest.raises(UserError, match="expected SQ, a convolution"):
        parse("-FC10")


def test_a_layer_that_does_not_say_what_it_makes_of_spikes_cannot_be_made():
    incomplete = type("Incomplete", (PlacedBase,), {"prefix": "x"})
    with pytest.raises(TypeError, match="is_fired"):
        incomplete()


EVERY = "c4k3s1-BN-PLIF-MPk2s2-ADD(c4k3s1-BN-LIF|c4k1s1-BN-IF)-CLIF-MPk2s2-DP-FC8-PLIF-RFC6-KLIF-FC3"


def test_layers_are_changed_wherever_they_stand():
    """Neurons, pools and delays, behind a layer, in a branch and in a shortcut; a layer behind what it contains."""

    text = EVERY.replace("DP-", "DELAY(max_delay=2)-DP-").replace("|", "-DELAY(max_delay=2)-c4k1s1-BN-IF|")
    renamed = re.sub(r"(PLIF|CLIF|KLIF|LIF|IF)\b", r"\1x", text)
    expected = renamed.replace("MP", "AP").replace("max_delay=2", "max_delay=3")
    changed = parse(text).substitute(Neurons, lambda neurons: replace(neurons, name=f"{neurons.name}x"))
    changed = changed.substitute(Pool, lambda pool: replace(pool, kind="AP"))
    changed = changed.substitute(Delay, lambda delay: replace(delay, arguments=(("max_delay", 3),)))
    assert str(changed) == expected
    seen = []
    parse(text).substitute(NotationBase, lambda layer: seen.append(type(layer).__name__) or layer)
    assert seen[:4] == ["Neurons", "Pool", "Conv", "Neurons"]
    assert str(parse(EVERY)) == EVERY


def test_neurons_and_layers_come_in_the_order_of_the_notation():
    layers = parse(EVERY).layers
    assert [neurons.name for neurons in neurons_in(layers)] == ["PLIF", "LIF", "IF", "CLIF", "PLIF", "KLIF"]
    specs = layer_specs(parse(EVERY), (2, 8, 8), 3)
    names = [spec.name for spec in every_layer(specs)]
    assert names == ["conv1", "conv2", "conv3", "res1", "pool1", "fc1", "fc2", "fc3"]


@pytest.mark.parametrize(
    ("text", "of_spikes", "of_numbers"),
    [
        ("c4k3s1-BN-PLIF", True, True), ("c4k3s1-BN", False, False), ("MPk2s2", True, False), ("APk2s2", False, False),
        ("PLIF", True, True), ("AND(MPk2s2|MPk2s2)", True, False), ("ADD(c4k3s1-BN-PLIF)", False, False),
        ("IAND(c4k3s1-BN-PLIF)", True, False), ("ADD(c4k3s1-BN)-PLIF", True, True),
        ("DELAY(max_delay=2)", False, False),
        ("DELAY(max_delay=2,rounds=true)", True, False), ("DELAY(max_delay=2,rounds=true)-MPk2s2", True, False),
    ],
)  # fmt: skip
def test_what_a_sequence_of_layers_makes_of_spikes(text, of_spikes, of_numbers):
    layers = parse(f"{text}-FC3").layers[:-1]
    assert [is_fired(layers, spikes) for spikes in (True, False)] == [of_spikes, of_numbers]


def test_a_delay_is_written_as_it_is_read():
    text = "DELAY(max_delay=20,kernel=gaussian)-FC8-PLIF-DELAY(max_delay=3,rounds=true)-FC3"
    assert str(parse(text)) == text
    with pytest.raises(
        UserError,
        match="DELAY must stand before an FC layer or a convolution, and not behind an FC layer without neurons",
    ):
        parse("FC8-DELAY(max_delay=3)")
