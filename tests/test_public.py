"""`help` of what the package exports is enough: each argument stands in the docstring of its class or function."""

import inspect

import pytest

import plif_lightning as pl

PUBLIC = {
    name: thing
    for name in dir(pl)
    if not name.startswith("_") and callable(thing := getattr(pl, name)) and not inspect.ismodule(thing)
}


def test_public_names_are_importable():
    assert {"PLIF", "SpikingNetwork", "SpikingClassifier", "from_spikingjelly", "load_network", "step"} <= {*PUBLIC}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_argument_is_explained(name):
    thing = PUBLIC[name]
    bases = thing.__mro__ if isinstance(thing, type) else [thing]
    own = [base for base in bases if base.__module__.startswith("plif_lightning")]
    explained = "\n".join(inspect.getdoc(part) or "" for base in own for part in (base, base.__init__))
    assert inspect.getdoc(thing)
    arguments = inspect.signature(thing.__init__ if isinstance(thing, type) else thing).parameters
    # Equations' parameters are arguments by name.
    names = {*arguments, *getattr(thing, "declared", ())} - {"self", "args", "kwargs", "kw"}
    assert {argument for argument in names if f"{argument}:" not in explained} == set()
