"""Modules with TensorFlow's "SAME" padding as ONNX graphs, by the exporter that writes opset 17."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import nn

from keystep_models.training.export_appearance import OPSET, fold_padding, without_traces


def graph_of(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    name: str,
) -> onnx.ModelProto:
    """Trace a module, its padding folded into its convolutions, the first dimension free.

    Args:
        module: In evaluation mode; shared weights are stored once.
        examples: An input of each name, in order, with a batch of 2 or more.
        outputs: Names.
        name: The graph's.

    Raises:
        ModelError: The exporter wrote other paddings than the module has.
    """
    padding = _padding_in_order(module, examples)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # As in export_appearance: the exporter that writes opset 17 is deprecated aloud.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            module,
            tuple(examples.values()),
            file,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_axes={each: {0: "batch"} for each in (*examples, *outputs)},
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    graph = without_traces(fold_padding(onnx.load_from_string(file.getvalue()), padding))
    graph.graph.name = name
    return graph


def _padding_in_order(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """[top, left, bottom, right] of every zero padding, in order of execution."""
    recorded: list[list[int]] = []

    def record(pad: nn.ZeroPad2d, *_: object) -> None:
        left, right, top, bottom = pad.padding
        recorded.append([top, left, bottom, right])

    pads = [each for each in module.modules() if isinstance(each, nn.ZeroPad2d)]
    hooks = [pad.register_forward_hook(record) for pad in pads]
    with torch.inference_mode():
        module(*examples.values())
    for hook in hooks:
        hook.remove()
    return recorded
