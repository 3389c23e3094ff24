"""ONNX Runtime: the contrib op GroupQueryAttention on the CPU, past and present cache in one buffer."""

from __future__ import annotations

import itertools

import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from attention import INT8_STEP, Inputs, Prepared, serve_attention
from shape import Shape
from worker import Unsupported

FLOATS = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT}
# By position; an empty name is an input left out.
INPUTS = "query key value past_key past_value seqlens_k total_sequence_length".split() + [""] * 4
INPUTS += ["head_sink", "k_scale", "v_scale"]


def model(shape: Shape, given: list[str]) -> bytes:
    attributes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
    if shape.window:
        attributes["local_window_size"] = shape.window
    types = dict.fromkeys(INPUTS, FLOATS[shape.dtype])
    types |= dict.fromkeys(["seqlens_k", "total_sequence_length"], TensorProto.INT32)
    cache_type = FLOATS[shape.dtype]
    if shape.dtype == "int8":
        cache_type = TensorProto.INT8
        attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        types |= dict.fromkeys(["k_scale", "v_scale"], TensorProto.FLOAT)
    types |= dict.fromkeys(["past_key", "past_value"], cache_type)
    names = [name if name in given else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, types[name], None) for name in given],
        [
            helper.make_tensor_value_info("output", FLOATS[shape.dtype], None),
            helper.make_tensor_value_info("present_key", cache_type, None),
            helper.make_tensor_value_info("present_value", cache_type, None),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def prepare(shape: Shape, inputs: Inputs, threads: int) -> Prepared:
    if shape.dtype in ("bf16", "fp8"):
        raise Unsupported(f"ONNX Runtime's GroupQueryAttention has no {shape.dtype} kernel for CPUs")
    if shape.chunk:
        raise Unsupported("ONNX Runtime's GroupQueryAttention has no chunk mask")

    def value(tensor: torch.Tensor) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())

    def cache(part: torch.Tensor) -> ort.OrtValue:
        stored = part.transpose(1, 2)
        return value((stored / INT8_STEP).round().to(torch.int8) if shape.dtype == "int8" else stored)

    # The tokens that the call is given; it writes them to the cache, whose other tokens are there already.
    new = slice(shape.length - shape.queries, shape.length)
    given = {
        "query": value(inputs.queries.flatten(2)),
        "key": value(inputs.keys[:, new].flatten(2)),
        "value": value(inputs.values[:, new].flatten(2)),
        "seqlens_k": value(torch.full((shape.batch,), shape.length - 1, dtype=torch.int32)),
        "total_sequence_length": value(torch.tensor(shape.length, dtype=torch.int32)),
    }
    if inputs.sinks is not None:
        given["head_sink"] = value(inputs.sinks.to(inputs.queries.dtype))
    if shape.dtype == "int8":
        given |= dict.fromkeys(["k_scale", "v_scale"], value(torch.tensor([INT8_STEP])))

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        model(shape, [*given, "past_key", "past_value"]), options, providers=["CPUExecutionProvider"]
    )
    output = value(torch.empty_like(inputs.queries).flatten(2))

    def bind() -> ort.IOBinding:
        binding = session.io_binding()
        for name, part in given.items():
            binding.bind_ortvalue_input(name, part)
        for name, part in (("key", inputs.keys), ("value", inputs.values)):
            buffer = cache(part)
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            binding.bind_ortvalue_output(f"present_{name}", buffer)
        binding.bind_ortvalue_output("output", output)
        return binding

    turns = itertools.cycle([bind() for _ in range(shape.cache_count)])
    note = "one scale a tensor" if shape.dtype == "int8" else ""
    return Prepared(
        lambda: session.run_with_iobinding(next(turns)),
        lambda: torch.from_numpy(output.numpy()).view(inputs.queries.shape),
        note,
    )


if __name__ == "__main__":
    serve_attention(prepare, {"ONNX Runtime": ort.__version__})
