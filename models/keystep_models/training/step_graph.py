"""The ONNX graph that advances temporal encoders by one tick, with their caches bound in place.

Keys and values of a layer are linear in the layer's input x_j, so x_j alone is cached and the
linear parts move to the query's side:

    q . (Wk x_j + bk) = (Wk^T q) . x_j + const      the constant falls out of the softmax
    sum_j a_j (Wv x_j + bv) = Wv (sum_j a_j x_j) + bv

One row is read for both, half the bytes of keys and values, and a tick costs little more than one
pass over them. Nothing is approximated. It is why rotary position encodings are not offered: they
come between Wk and x_j.

B sessions, C cues, S slots, W ring places, D width, H heads. Only NumPy and onnx are needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = NDArray[np.float32]

OPSET = 18
_IR_VERSION = 9
_UNSEEN = -1e30
"""Added to scores of ring places that are not seen: their weight becomes exactly 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerWeights:
    """A post-norm transformer layer; matrices are applied as W @ x + b.

    Attributes:
        queries_keys_values: (3 D, D) and (3 D,).
        out: (D, D) and (D,).
        norm_attention: Scale and shift, (D,) each.
        wide: (F, D) and (F,).
        narrow: (D, F) and (D,).
        norm_feed: Scale and shift, (D,) each.
    """

    queries_keys_values: tuple[Weights, Weights]
    out: tuple[Weights, Weights]
    norm_attention: tuple[Weights, Weights]
    wide: tuple[Weights, Weights]
    narrow: tuple[Weights, Weights]
    norm_feed: tuple[Weights, Weights]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CueWeights:
    """One cue's encoder.

    Attributes:
        inward: Raw feature to D, (D, D_cue) and (D,).
        raw_scale: What raw features are multiplied by first.
        layers: One after the other; as many for every cue.
    """

    inward: tuple[Weights, Weights]
    raw_scale: float
    layers: tuple[LayerWeights, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What is not a weight.

    Attributes:
        context: W.
        heads: H; each sees D / H values.
        slopes: Added to head h's scores: minus slopes[h] times the age in ticks; zeros: nothing.
        frame_rates: Per pair of values of the raw feature the angle a tick adds, by cue: the
            encoding of the tick's index, sines at even and cosines at odd places, is added to the
            scaled raw feature; empty: none is.
    """

    context: int
    heads: int
    slopes: tuple[float, ...]
    frame_rates: Mapping[str, Weights]


class _Graph:
    """Nodes and initialisers as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def linear(self, value: str, name: str, matrix: NDArray[Any], shift: NDArray[Any]) -> str:
        """Return value (C, B, I) times matrix (C, I, O) plus shift (C, 1, O)."""
        product = self.node(
            "MatMul", [value, self.constant(f"{name}.w", matrix)], f"{name}.product"
        )
        return self.node("Add", [product, self.constant(f"{name}.b", shift)], name)

    def norm(self, value: str, name: str, scale: NDArray[Any], shift: NDArray[Any]) -> str:
        """Layer norm of (C, B, D) with a scale and shift per cue, (C, 1, D)."""
        size = scale.shape[-1]
        plain = self.node(
            "LayerNormalization",
            [value, self.constant(f"ones.{size}", np.ones(size, np.float32))],
            f"{name}.plain",
            axis=-1,
        )
        scaled = self.node("Mul", [plain, self.constant(f"{name}.scale", scale)], f"{name}.scaled")
        return self.node("Add", [scaled, self.constant(f"{name}.shift", shift)], name)


def build_step_graph(cues: Mapping[str, CueWeights], options: GraphOptions) -> onnx.ModelProto:
    """The graph of one tick of a batch of sessions.

    Inputs: `raw_CUE` float32 (B, D_cue) per cue; `frames` float32 (B,), the ticks, where
    `options.frame_rates` is not empty; `slots` int64 (C, B, 2), whose rows are read: cue, slot;
    `places` int64 (C, B, 3), where the new rows go: cue, slot, ring place; `ages` float32
    (C, B, W): how many ticks ago every ring place's tick was, W or more where it is not to be
    seen; `layer_0` ... float32 (C, S, W, D).
    Outputs: `adapted` float32 (C, B, D); `layer_0_out` ..., to be bound where the inputs are.

    Args:
        cues: Encoders by cue; all with the same sizes but for the raw feature's.
        options: As above.
    """
    graph = _Graph()
    names, own = list(cues), list(cues.values())
    width = own[0].inward[1].shape[0]
    x = _inward(graph, names, own, options)
    pair = graph.constant("pair", np.array([-1, 2], np.int64))
    graph.node("Reshape", ["slots", pair], "rows")
    bias = _bias(graph, options)
    layer_count = len(own[0].layers)
    for idx in range(layer_count):
        layers = [each.layers[idx] for each in own]
        x = _layer(graph, idx, layers, x, bias, options)
    graph.node("Identity", [x], "adapted")
    return _as_model(graph, names, own, options, width, layer_count)


def _inward(graph: _Graph, names: list[str], cues: list[CueWeights], options: GraphOptions) -> str:
    """Raw features of every cue to (C, B, D)."""
    if options.frame_rates:
        column = graph.constant("column", np.array([1], np.int64))
        frames = graph.node("Unsqueeze", ["frames", column], "frames.column")
    rows = []
    for name, cue in zip(names, cues, strict=True):
        matrix, shift = cue.inward
        turned = matrix.T  # (D_cue, D)
        value, parts = f"raw_{name}", [turned * np.float32(cue.raw_scale)]
        if options.frame_rates:
            size = len(turned)
            rates = graph.constant(f"{name}.rates", options.frame_rates[name][None])
            angle = graph.node("Mul", [frames, rates], f"{name}.angle")
            sine = graph.node("Sin", [angle], f"{name}.sine")
            cosine = graph.node("Cos", [angle], f"{name}.cosine")
            value = graph.node("Concat", [value, sine, cosine], f"{name}.placed", axis=1)
            odd = np.zeros(((size + 1) // 2, turned.shape[1]), np.float32)
            odd[: size // 2] = turned[1::2]  # an odd size has no last cosine
            parts += [turned[0::2], odd]
        weight = graph.constant(f"{name}.inward.w", np.concatenate(parts))
        product = graph.node("MatMul", [value, weight], f"{name}.inward.product")
        shifted = graph.constant(f"{name}.inward.b", shift)
        row = graph.node("Add", [product, shifted], f"{name}.inward")
        first = graph.constant("first", np.array([0], np.int64))
        rows.append(graph.node("Unsqueeze", [row, first], f"{name}.row"))
    return graph.node("Concat", rows, "x_0", axis=0) if len(rows) > 1 else rows[0]


def _bias(graph: _Graph, options: GraphOptions) -> str:
    """What is added to scores, (C B, H or 1, 1, W)."""
    flat = graph.constant("flat", np.array([-1, 1, 1, options.context], np.int64))
    ages = graph.node("Reshape", ["ages", flat], "ages.flat")
    limit = graph.constant("context", np.array(options.context, np.float32))
    seen = graph.node("Less", [ages, limit], "seen")
    if any(options.slopes):
        slopes = -np.array(options.slopes, np.float32).reshape(1, -1, 1, 1)
        falling = graph.node("Mul", [ages, graph.constant("slopes", slopes)], "falling")
    else:
        falling = graph.constant("zero", np.array(0.0, np.float32))
    unseen = graph.constant("unseen", np.array(_UNSEEN, np.float32))
    return graph.node("Where", [seen, falling, unseen], "bias")


def _attention(pool: str, heads: int, width: int, options: GraphOptions) -> onnx.GraphProto:
    """One session's newest tick over one cue's cached rows; the pool comes from outside.

    Session by session, since a batch's rows do not fit a core's cache: gathered all at once, they
    went to memory and came back for each of the two products, which took half as long again.
    """
    nodes = [
        helper.make_node("GatherND", [pool, "row"], ["cached"]),  # (W, D)
        helper.make_node("Transpose", ["cached"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["query", "columns"], ["scores"]),  # (H, 1, W)
        helper.make_node("Add", ["scores", "seen_bias"], ["scores.seen"]),
        helper.make_node("Softmax", ["scores.seen"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "cached"], ["mean"]),
    ]
    bias_heads = heads if any(options.slopes) else 1
    return helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("row", TensorProto.INT64, [2]),
            helper.make_tensor_value_info("query", TensorProto.FLOAT, [heads, 1, width]),
            helper.make_tensor_value_info(
                "seen_bias", TensorProto.FLOAT, [bias_heads, 1, options.context]
            ),
        ],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [heads, 1, width])],
    )


def _layer(
    graph: _Graph,
    idx: int,
    cues: list[LayerWeights],
    x: str,
    bias: str,
    options: GraphOptions,
) -> str:
    heads = options.heads
    name = f"layer_{idx}"
    pool = graph.node("ScatterND", [name, "places", x], f"{name}_out")
    queries = _stacked([_folded_query(each, heads) for each in cues])
    query = graph.linear(x, f"{name}.query", *queries)
    width = cues[0].out[1].shape[0]
    split = graph.constant("split", np.array([-1, heads, 1, width], np.int64))
    query = graph.node("Reshape", [query, split], f"{name}.query.heads")  # (C B, H, 1, D)
    mean = graph.node(
        "Scan",
        ["rows", query, bias],
        f"{name}.mean",
        body=_attention(pool, heads, width, options),
        num_scan_inputs=3,
    )
    joined = graph.constant("joined", np.array([len(cues), -1, heads * width], np.int64))
    mean = graph.node("Reshape", [mean, joined], f"{name}.mean.joined")
    out = graph.linear(mean, f"{name}.out", *_stacked([_folded_out(e, heads) for e in cues]))
    added = graph.node("Add", [x, out], f"{name}.attended")
    x = graph.norm(added, f"{name}.norm", *_stacked([each.norm_attention for each in cues]))
    wide = graph.linear(x, f"{name}.wide", *_stacked([_turned(each.wide) for each in cues]))
    wide = graph.node("Relu", [wide], f"{name}.relu")
    fed = graph.linear(wide, f"{name}.narrow", *_stacked([_turned(each.narrow) for each in cues]))
    added = graph.node("Add", [x, fed], f"{name}.fed")
    return graph.norm(added, f"{name}.after", *_stacked([each.norm_feed for each in cues]))


def _folded_query(layer: LayerWeights, heads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """From x to every head's query on the cached rows' side: (D, H D) and (H D,)."""
    matrix, shift = (part.astype(np.float64) for part in layer.queries_keys_values)
    width = matrix.shape[1]
    size = width // heads
    columns, shifts = [], []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        query, query_shift = matrix[:width][own], shift[:width][own]
        key = matrix[width : 2 * width][own] / math.sqrt(size)
        columns.append(query.T @ key)
        shifts.append(query_shift @ key)
    return np.concatenate(columns, axis=1), np.concatenate(shifts)


def _folded_out(layer: LayerWeights, heads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Every head's mean of cached rows to the layer's attention output: (H D, D) and (D,)."""
    matrix, shift = (part.astype(np.float64) for part in layer.queries_keys_values)
    out, out_shift = (part.astype(np.float64) for part in layer.out)
    width = matrix.shape[1]
    size = width // heads
    rows, total = [], out_shift
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        rows.append((out[:, own] @ matrix[2 * width :][own]).T)
        total = total + out[:, own] @ shift[2 * width :][own]
    return np.concatenate(rows), total


def _turned(weights: tuple[Weights, Weights]) -> tuple[Weights, Weights]:
    return weights[0].T, weights[1]


def _stacked(weights: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[Weights, Weights]:
    """Weights of all cues: (C, ...) and (C, 1, O)."""
    first = np.stack([np.atleast_2d(each[0]) for each in weights]).astype(np.float32)
    second = np.stack([each[1][None] for each in weights]).astype(np.float32)
    return first, second


def _as_model(
    graph: _Graph,
    names: list[str],
    cues: list[CueWeights],
    options: GraphOptions,
    width: int,
    layer_count: int,
) -> onnx.ModelProto:
    def tensor(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))

    pool = (len(names), "slots_and_spare", options.context, width)
    layers = [f"layer_{idx}" for idx in range(layer_count)]
    inputs = [
        tensor(f"raw_{name}", TensorProto.FLOAT, "batch", cue.inward[0].shape[1])
        for name, cue in zip(names, cues, strict=True)
    ]
    if options.frame_rates:
        inputs.append(tensor("frames", TensorProto.FLOAT, "batch"))
    inputs += [
        tensor("slots", TensorProto.INT64, len(names), "batch", 2),
        tensor("places", TensorProto.INT64, len(names), "batch", 3),
        tensor("ages", TensorProto.FLOAT, len(names), "batch", options.context),
        *(tensor(name, TensorProto.FLOAT, *pool) for name in layers),
    ]
    outputs = [
        tensor("adapted", TensorProto.FLOAT, len(names), "batch", width),
        *(tensor(f"{name}_out", TensorProto.FLOAT, *pool) for name in layers),
    ]
    proto = helper.make_graph(
        graph.nodes, "incremental_encoders", inputs, outputs, list(graph.initialisers.values())
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
    )
    model.producer_name = "keystep"
    onnx.checker.check_model(model, full_check=True)
    return model


def tensor_entries(values: Sequence[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    """A graph's inputs or outputs as a manifest lists them."""
    dtypes = {int(TensorProto.FLOAT): "float32", int(TensorProto.INT64): "int64"}
    return [
        {
            "name": value.name,
            "dtype": dtypes[value.type.tensor_type.elem_type],
            "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]
