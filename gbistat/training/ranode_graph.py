"""Signal flows as ONNX graphs: one graph is made and checked, and filled with the weights of each network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.errors import TermError
from gbistat.training.environment import keras
from gbistat.training.flow import features_of, logits_of
from gbistat.training.graph import to_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.transforms import FeatureTransform
    from gbistat.training.stacked_flow import StackedFlow
    from gbistat.typing import FloatArray

__all__ = ["FlowGraphs", "make_graphs"]


@dataclass(frozen=True, eq=False)
class FlowGraphs:
    """Graphs of T networks, in their order.

    Parameters
    ----------
    densities : list of bytes
        Raw mass and features (n, d) to ln p in their units (n, 1).
    samplers : list of bytes
        Standard-normal numbers (n, d) to raw mass and features (n, d).
    """

    densities: list[bytes]
    samplers: list[bytes]


def make_graphs(flow: StackedFlow, transform: FeatureTransform, weights: Sequence[FloatArray]) -> FlowGraphs:
    """Graphs of every network of a stack.

    Parameters
    ----------
    flow : StackedFlow
        Architecture.
    transform : FeatureTransform
        From raw values to what the networks see.
    weights : sequence of array of shape (T, ...)
        Masked weights.

    Raises
    ------
    TermError
        If the network cannot be written as ONNX, or its weights are not found in the graph.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.

    Notes
    -----
    Conversion takes seconds, and all networks have one architecture: it is done once with weights of random numbers, which are found again
    in the graph and exchanged.
    """
    rng = np.random.default_rng(0)
    marks: list[Any] = [rng.uniform(0.5, 1.0, size=(1, *array.shape[1:])).astype(np.float32) for array in weights]
    found = []
    for name, function in (("density", _density), ("sampler", _sampler)):
        template = to_onnx(_network(flow, transform, marks, function, f"signal_{name}"))
        found.append([_filled(template, marks, [array[t] for array in weights]) for t in range(len(weights[0]))])
    return FlowGraphs(*found)


def _density(flow: StackedFlow, transform: FeatureTransform, weights: Sequence[Any], x: Any) -> Any:
    z, log_slope = logits_of(x, transform)
    ops = keras().ops
    log_p = flow.log_prob(weights, ops.expand_dims(ops.transpose(z), 0))
    return ops.transpose(log_p) + log_slope


def _sampler(flow: StackedFlow, transform: FeatureTransform, weights: Sequence[Any], x: Any) -> Any:
    ops = keras().ops
    z = flow.inverse(weights, ops.expand_dims(ops.transpose(x), 0))
    return features_of(ops.transpose(z[0]), transform)


def _network(
    flow: StackedFlow, transform: FeatureTransform, marks: Sequence[FloatArray], function: Any, name: str
) -> Any:
    library = keras()
    inputs = library.Input((flow.n_features,), name="x")
    outputs = _flow_layer()(flow, transform, marks, function, name=f"{name}_layer")(inputs)
    return library.Model(inputs, outputs, name=name)


@cache
def _flow_layer() -> Any:
    """Class of a layer that holds the weights of one flow; made when Keras is there."""
    library = keras()
    base: Any = library.layers.Layer

    class FlowLayer(base):
        """A function of weights and inputs."""

        def __init__(self, flow: Any, transform: Any, start: Any, function: Any, *, name: str) -> None:
            super().__init__(name=name)
            self.flow, self.transform, self.function = flow, transform, function
            self.start = [np.asarray(array) for array in start]

        def build(self, input_shape: Any) -> None:
            self.arrays = [
                self.add_weight(
                    shape=array.shape,
                    initializer=lambda shape, dtype=None, array=array: library.ops.convert_to_tensor(array),
                    name=f"array_{index}",
                )
                for index, array in enumerate(self.start)
            ]

        def call(self, inputs: Any) -> Any:
            return self.function(self.flow, self.transform, self.arrays, inputs)

    return FlowLayer


def _filled(template: bytes, marks: Sequence[Any], weights: Sequence[Any]) -> bytes:
    """The template with other weights in the place of the marks."""
    onnx = extras.onnx()
    model = onnx.load_from_string(template)
    constants = list(model.graph.initializer)
    values = [onnx.numpy_helper.to_array(tensor) for tensor in constants]
    for mark, weight in zip(marks, weights, strict=True):
        places = [
            i
            for i, value in enumerate(values)
            if value.size == mark.size and np.array_equal(value.ravel(), mark.ravel())
        ]
        if not places:
            raise TermError(
                f"the weights of shape {mark.shape[1:]} are not found in the exported graph; check the versions of tf2onnx and onnx"
            )
        for place in places:
            new = np.asarray(weight, dtype=values[place].dtype).reshape(values[place].shape)
            constants[place].CopyFrom(onnx.numpy_helper.from_array(new, constants[place].name))
    filled: bytes = model.SerializeToString()
    return filled
