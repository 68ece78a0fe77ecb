"""The network's parts as OpenVINO graphs: what streaming runs on a CPU where OpenVINO is installed.

Biases, activations and residual sums are fused into the convolutions, and features keep the processor's own layout
inside a part. Warping, resampling and the flow's pyramid stay in torch. Float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.ops.warp import flow_warp
from saccade.restoration.realbasicvsr.blocks import SLOPE, ResidualStack
from saccade.restoration.realbasicvsr.network import RealBasicVSR
from saccade.restoration.realbasicvsr.propagation import Tail, tail_in_strips
from saccade.restoration.realbasicvsr.spynet import SPyNet
from saccade.runtime.engines import cores, load_openvino

__all__ = ["Compiled"]

Run = Callable[..., Tensor]


class _Graphs:
    """Builds and compiles the parts of one network."""

    def __init__(self, threads: int) -> None:
        self.ov = load_openvino()
        from openvino import opset13

        self.op: Any = opset13
        self.core = self.ov.Core()
        self.options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }

    def input(self, channels: int) -> Any:
        return self.op.parameter([1, channels, -1, -1], np.float32)

    def constant(self, value: Tensor) -> Any:
        return self.op.constant(value.detach().cpu().float().contiguous().numpy())

    def conv(self, x: Any, layer: nn.Module) -> Any:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        pad = [weight.shape[2] // 2] * 2
        made = self.op.convolution(x, self.constant(weight), [1, 1], pad, pad, [1, 1])
        return self.op.add(made, self.constant(bias.view(1, -1, 1, 1)))

    def leaky(self, x: Any) -> Any:
        return self.op.prelu(x, self.op.constant(np.array([SLOPE], np.float32)))

    def stack(self, x: Any, stack: ResidualStack) -> Any:
        x = self.leaky(self.conv(x, stack.first))
        for block in stack.blocks:
            x = self.op.add(x, self.conv(self.op.relu(self.conv(x, block.conv1)), block.conv2))  # type: ignore[arg-type]
        return x

    def compile(self, inputs: list[Any], output: Any) -> Run:
        model = self.ov.Model([self.op.result(output)], inputs)
        request = self.core.compile_model(model, "CPU", self.options).create_infer_request()
        ov = self.ov

        def run(*values: Tensor) -> Tensor:
            given = {i: ov.Tensor(v.contiguous().numpy(), shared_memory=True) for i, v in enumerate(values)}
            request.infer(given)
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return run


class _Flow:
    """SPyNet with compiled levels."""

    def __init__(self, graphs: _Graphs, network: SPyNet) -> None:
        self.network = network
        self.levels = []
        for level in network.levels:
            x = given = graphs.input(8)
            for i, layer in enumerate(level.convs):  # type: ignore[arg-type]
                x = graphs.conv(x, layer)
                x = graphs.op.relu(x) if i < len(level.convs) - 1 else x  # type: ignore[arg-type]
            self.levels.append(graphs.compile([given], x))

    def pyramid(self, frames: Tensor) -> list[Tensor]:
        return self.network.pyramid(frames)

    def between(self, reference: list[Tensor], neighbour: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.network.between(reference, neighbour, size, self.levels)


class _Branch:
    """A step of propagation."""

    def __init__(self, graphs: _Graphs, width: int, stack: ResidualStack) -> None:
        self.width = width
        frame, features = graphs.input(3), graphs.input(width)
        self.run = graphs.compile([frame, features], graphs.stack(graphs.op.concat([frame, features], 1), stack))

    def __call__(self, frame: Tensor, before: Tensor | None, flow: Tensor | None) -> Tensor:
        if before is None or flow is None:
            moved = frame.new_zeros(1, self.width, *frame.shape[2:])
        else:
            moved = flow_warp(before, flow)
        return self.run(frame, moved)


class _Tail:
    """Fusion and enlargement, strip by strip."""

    def __init__(self, graphs: _Graphs, width: int, tail: Tail) -> None:
        op = graphs.op
        backward, forward = graphs.input(width), graphs.input(width)
        x = graphs.leaky(graphs.conv(op.concat([backward, forward], 1), tail.fusion))
        for layer in (tail.enlarge1, tail.enlarge2):
            x = graphs.leaky(op.depth_to_space(graphs.conv(x, layer), "depth_first", 2))
        x = graphs.conv(graphs.leaky(graphs.conv(x, tail.high)), tail.last)
        self.run = graphs.compile([backward, forward], x)

    def __call__(self, frame: Tensor, backward: Tensor, forward: Tensor) -> Tensor:
        return tail_in_strips(self.run, frame, backward, forward)


class Compiled:
    """The parts of a network, compiled; stands in for it in `Streamer`. Frames one at a time, float32, on the CPU.

    Args:
        model: what is compiled; later changes of its weights do not reach the graphs.
        threads: 0 for all cores.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """

    def __init__(self, model: RealBasicVSR, threads: int = 0) -> None:
        graphs = _Graphs(threads or cores())
        self.cleaning: Run | None = None
        if model.cleaning is not None:
            given = graphs.input(3)
            change = graphs.conv(graphs.stack(given, model.cleaning.body), model.cleaning.last)
            self.cleaning = graphs.compile([given], change)
        self.flow = _Flow(graphs, model.flow)
        self.backward_branch = _Branch(graphs, model.width, model.backward_branch.stack)
        self.forward_branch = _Branch(graphs, model.width, model.forward_branch.stack)
        self.tail = _Tail(graphs, model.width, model.tail)
