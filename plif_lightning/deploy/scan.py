"""ONNX of a recurrent network: its time-step in a Scan, instead of a copy of it for each of T steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def scan_of(step: Any, first: Mapping[str, float], last_alone: bool) -> Any:
    """A model of x [T, N, *] -> votes [T, N, classes], for any T and N.

    Args:
        step: model of a time-step, see `exporting.SingleStep`: (frame, states) -> (votes, states after the step).
        first: value of each state before the first step, by the name of its input.
        last_alone: give the votes of the last step alone, [1, N, classes].
    """
    from onnx import TensorProto, checker, compose, helper, numpy_helper

    # A value of the step must not have a name of the graph around it.
    body = compose.add_prefix(step, "step_").graph
    (frame, *states), (votes, *after) = list(body.input), list(body.output)
    del body.input[:], body.output[:]
    body.input.extend([*states, frame])
    body.output.extend([*after, votes])
    nodes, sizes = [helper.make_node("Shape", ["x"], ["N"], start=1, end=2)], []
    for state, value in zip(states, first.values(), strict=True):
        name, shape = state.name, [dim.dim_value for dim in state.type.tensor_type.shape.dim]
        sizes.append(numpy_helper.from_array(np.array(shape[1:], np.int64), f"size_{name}"))
        nodes.append(helper.make_node("Concat", ["N", f"size_{name}"], [f"shape_{name}"], axis=0))
        filled = numpy_helper.from_array(np.array([value], np.float32))
        nodes.append(helper.make_node("ConstantOfShape", [f"shape_{name}"], [f"first_{name}"], value=filled))
    before, ends = ([f"{prefix}_{state.name}" for state in states] for prefix in ("first", "last"))
    all_votes = "votes_of_all_steps" if last_alone else "votes"
    nodes.append(helper.make_node("Scan", [*before, "x"], [*ends, all_votes], body=body, num_scan_inputs=1))
    if last_alone:
        last = {"start": [-1], "end": [np.iinfo(np.int64).max], "axis": [0]}
        sizes += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in last.items()]
        nodes.append(helper.make_node("Slice", [all_votes, *last], ["votes"]))

    def over_time(value: Any, name: str, steps: str | int) -> Any:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [steps, "batch", *dims[1:]])

    outputs = [over_time(votes, "votes", 1 if last_alone else "T")]
    graph = helper.make_graph(nodes, "network", [over_time(frame, "x", "T")], outputs, sizes)
    model = helper.make_model(
        graph, opset_imports=step.opset_import, ir_version=step.ir_version, functions=step.functions
    )
    checker.check_model(model, full_check=True)
    return model
