"""Networks of SpikingJelly with the neurons and blocks of this package, under their original forward.

A conversion puts neurons in the places of nodes (`neurons`), groups layers (`grouping`) and forms blocks of them
(`forming`); `Vocabulary` says what a module is. A comparison with the original proves it (`proof`).
"""

import copy
import logging
from collections.abc import Callable, Mapping

import torch.distributed as dist
from torch import Tensor, nn

from plif_lightning.convert.converted import Converted
from plif_lightning.convert.forming import converted_by
from plif_lightning.convert.grouping import Plan, plan_of_calls
from plif_lightning.convert.neurons import neurons_in_place
from plif_lightning.convert.nodes import NODES
from plif_lightning.convert.proof import Proof
from plif_lightning.convert.recognise import MakeNeuron, Vocabulary
from plif_lightning.convert.recording import block_that_is_read, takes_images
from plif_lightning.convert.versions import library_of
from plif_lightning.errors import UserError

_log = logging.getLogger(__name__)


def from_spikingjelly(
    net: nn.Module, x: Tensor | None = None, nodes: Mapping[type[nn.Module], MakeNeuron] | None = None
) -> Converted:
    """The same network with neurons of this package: same parameters, same outputs, without `reset_net`.

    With an example, layers that a kernel can fuse become blocks: convolution - BN - node - pool, dropout - FC - node.
    The forward of the network runs as it is. Both networks are then compared on a copy in float64, with nodes made
    to fire: outputs, all gradients and BN's statistics, twice in training mode, then in the network's own modes and in
    evaluation. If they differ, or a node fires too rarely or too often, only nodes are replaced, with a warning that
    names the difference.
    Without an example, layers of a plain `nn.Sequential` become blocks, and nothing is compared.

    Args:
        net: in multi-step mode (`functional.set_step_mode(net, "m")`), or of the older `clock_driven`, with its
            `MultiStep...` nodes. It is only reset; its parameters are copied.
        x: an example [T, N, *], of which at most 4 samples are used; or images, if its forward repeats them.
        nodes: for user-defined neurons: class -> function of such a module that returns a `Neuron`, or a module with
            one, over the same input.

    Raises:
        UserError: a node is in single-step mode; no node can be replaced; or outputs differ even with nodes alone.

    >>> import torch
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(3, 2, step_mode="m"), neuron.LIFNode(tau=4.0, step_mode="m"))
    >>> converted = from_spikingjelly(net, torch.rand(8, 2, 3))
    >>> print(converted.conversion)
    1 nodes in blocks, 0 alone, 0 kept; equal on the example
    >>> converted(torch.zeros(8, 1, 3)).shape
    torch.Size([8, 1, 2])
    """
    vocabulary = Vocabulary(library_of(net, list(NODES)), nodes or {})
    vocabulary.library.reset(net)
    vocabulary.require_multi_step(net)
    if x is None:
        return converted_by(net, vocabulary)
    takes_sequences = x.dim() != 4 or not takes_images(net, x, vocabulary.is_node)
    x = x[:, :4] if takes_sequences else x[:4]
    with Proof(net, x, vocabulary.is_node, vocabulary.library) as proof:
        plan, convert = _plan(proof, vocabulary, takes_sequences)
        difference = proof.difference(convert(plan))
        if _decided_by_first(difference) and plan.of_frames:
            plan = plan.without_frames
            difference = proof.difference(convert(plan))
        unproved = _decided_by_first(difference or ", ".join(proof.untelling))
        if unproved:  # nodes alone
            plan = Plan(shared=plan.shared)
            difference = _decided_by_first(proof.difference(convert(plan)))
            if difference and proof.repeats:  # of a network that is random in other ways than dropout nothing is known
                raise UserError(f"{type(net).__name__} cannot be converted: {difference}.")
    # The comparison was of a copy whose nodes fire; the network itself is converted by the same plan.
    converted = converted_by(net, vocabulary, takes_sequences, plan)
    converted.conversion.compared = not (difference or proof.untelling)
    if unproved:
        converted.conversion.reason = unproved
        _log.warning("%s: its nodes are replaced, but no blocks are formed: %s.", type(net).__name__, unproved)
    return converted


def _plan(proof: Proof, vocabulary: Vocabulary, takes_sequences: bool) -> tuple[Plan, Callable[[Plan], Converted]]:
    """The blocks of a network, between whose layers its forward reads nothing; and how its copy is converted by a plan.

    Raises:
        UserError: it has no node that can be replaced, or its forward fails with neurons for nodes.
    """
    try:
        # A draft to record calls in: which layers are called twice, and so how nodes are replaced, is not known yet.
        draft, _ = neurons_in_place(proof.net, vocabulary, takes_sequences=False, shared=set())
        plan = plan_of_calls(draft, draft.net, proof.x, vocabulary)
    except UserError:
        raise
    except Exception as error:  # of a forward that asks a node for attributes that our neurons lack
        name = type(proof.net).__name__
        raise UserError(f"{name} cannot be converted: {type(error).__name__}: {error}.") from error
    source = copy.deepcopy(proof.net)  # a forward may keep tensors with gradients, which cannot be copied

    def convert(plan: Plan) -> Converted:
        return converted_by(source, vocabulary, takes_sequences, plan)

    while read := block_that_is_read(convert(plan), proof.x):
        plan.chains = [chain for chain in plan.chains if chain[0] != read]
    return plan, convert


def _decided_by_first(difference: str) -> str:
    """The result of the first process, so that all build the same network."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return difference
    differences = [difference]
    dist.broadcast_object_list(differences)
    return differences[0]
