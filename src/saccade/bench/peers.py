"""What else a user could run a network with: each function makes one ready-to-run call on a fixed input.

They take an exported ONNX graph, its input (1, C, h, w) float32, and the number of threads; ImportError where the
library is not installed, its own errors where it cannot run the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from saccade.runtime.threads import on_threads

__all__ = ["onnxruntime", "opencv", "openvino", "torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch on ``count`` threads, without gradients."""
    import torch

    with on_threads(count), torch.inference_mode():
        yield


def onnxruntime(graph: Path, given: np.ndarray, threads: int) -> Callable[[], Any]:
    """By ONNX Runtime, the whole picture at once."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"low": given})


def openvino(graph: Path, given: np.ndarray, threads: int) -> Callable[[], Any]:
    """By OpenVINO, the whole picture at once, tuned for latency, in float32."""
    import openvino as ov

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(str(graph), "CPU", options)
    request = compiled.create_infer_request()
    return lambda: request.infer({0: given}, share_inputs=True, share_outputs=True)


def opencv(graph: Path, given: np.ndarray, threads: int) -> Callable[[], Any]:
    """By OpenCV's dnn module, the whole picture at once."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(graph))

    def forward() -> Any:
        cv2.setNumThreads(threads)
        network.setInput(given)
        return network.forward()

    forward()
    return forward
