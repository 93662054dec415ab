"""Writes a workload as an integer .tflite file, without TensorFlow.

Tensors are `[1, 1, frames, channels]`: frames along the width. Weights are Gaussian, rounded to their bit-width and stored as
int8 with a scale per output channel; a depthwise convolution pads its frames on both sides.
"""

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tflite

ACTIVATION_SCALE = 0.05
WEIGHT_SCALE = 0.01
ACTIVATION_TYPES = {8: (tflite.TensorType.INT8, tflite.TensorType.INT32), 16: (tflite.TensorType.INT16, tflite.TensorType.INT64)}
"""Types of activations and of biases."""
CLIP_SIGMAS = 3.0
CLIP_SIGMAS_TWO_BITS = 1.5  # else most of the three levels that 2 bits leave would be zero

Entry = tuple[str, np.ndarray | None, tuple[int, ...], int, int, list[float]]


def gaussian_weights(shape: tuple[int, ...], bits: int, seed: int) -> np.ndarray:
    """Gaussian weights rounded to signed `bits`-bit integers of a symmetric grid, as int8.

    The grid ends at 3 sigma, at 1.5 for 2 bits.
    """
    top = 2 ** (bits - 1) - 1
    clip = CLIP_SIGMAS_TWO_BITS if bits == 2 else CLIP_SIGMAS
    drawn = np.random.default_rng(seed).standard_normal(shape) / clip * top
    return np.clip(np.rint(drawn), -top, top).astype(np.int8)


def write_tflite(network: dict[str, Any], weight_bits: int, activation_bits: int, path: Path) -> None:
    """Write the network of a case.

    Args:
        network: `frames`, `sites` (channels by name) and `layers` in execution order, each with `name`, `kind`, `inputs`,
            `output`, `in_channels`, `out_channels`, `kernel_size`, `dilation` and `relu`.
        weight_bits: width of all weights, 2 to 8.
        activation_bits: 8 or 16.
        path: where to write.
    """
    frames = network["frames"]
    activation_type, bias_type = ACTIVATION_TYPES[activation_bits]
    tensors: list[Entry] = []
    index: dict[str, int] = {}

    def add(name: str, shape: tuple[int, ...], kind: int, data: np.ndarray | None, axis: int, scales: list[float]) -> int:
        index[name] = len(tensors)
        tensors.append((name, data, shape, kind, axis, scales))
        return index[name]

    for site, channels in network["sites"].items():
        add(site, (1, 1, frames, channels), activation_type, None, 0, [ACTIVATION_SCALE])
    operators: list[tuple[int, list[int], int, dict[str, Any]]] = []
    for seed, layer in enumerate(network["layers"]):
        inputs = [index[site] for site in layer["inputs"]]
        if layer["kind"] == "add":
            operators.append((tflite.BuiltinOperator.ADD, inputs, index[layer["output"]], layer))
            continue
        outputs, taps = layer["out_channels"], layer["kernel_size"]
        depthwise = layer["kind"] == "depthwise"
        shape = (1, 1, taps, outputs) if depthwise else (outputs, 1, taps, layer["in_channels"])
        scales = [WEIGHT_SCALE * (1 + channel / outputs) for channel in range(outputs)]
        weights = gaussian_weights(shape, weight_bits, seed)
        biases = np.arange(outputs, dtype=np.int32 if bias_type == tflite.TensorType.INT32 else np.int64)
        inputs.append(add(f"{layer['name']}.weight", shape, tflite.TensorType.INT8, weights, 3 if depthwise else 0, scales))
        bias_scales = [ACTIVATION_SCALE * scale for scale in scales]
        inputs.append(add(f"{layer['name']}.bias", (outputs,), bias_type, biases, 0, bias_scales))
        code = tflite.BuiltinOperator.DEPTHWISE_CONV_2D if depthwise else tflite.BuiltinOperator.CONV_2D
        operators.append((code, inputs, index[layer["output"]], layer))

    written = {layer["output"] for layer in network["layers"]}
    read = {site for layer in network["layers"] for site in layer["inputs"]}
    sources = [index[site] for site in network["sites"] if site not in written]
    sinks = [index[site] for site in network["sites"] if site not in read]
    path.write_bytes(_model(tensors, operators, sources, sinks))


def _model(
    tensors: list[Entry], operators: list[tuple[int, list[int], int, dict[str, Any]]], sources: list[int], sinks: list[int]
) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    codes = sorted({code for code, *_ in operators})
    buffers = [_buffer(builder, None)]  # buffer 0 is the empty one, by convention
    tables = []
    for name, data, shape, kind, axis, scales in tensors:
        tables.append(_tensor(builder, name, shape, kind, 0 if data is None else len(buffers), axis, scales))
        if data is not None:
            buffers.append(_buffer(builder, data))
    steps = [_operator(builder, codes.index(code), code, inputs, output, layer) for code, inputs, output, layer in operators]
    vectors = [_offsets(builder, tflite.SubGraphStartTensorsVector, tables), builder.CreateNumpyVector(_int32(sources))]
    vectors += [builder.CreateNumpyVector(_int32(sinks)), _offsets(builder, tflite.SubGraphStartOperatorsVector, steps)]
    name = builder.CreateString("main")
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, vectors[0])
    tflite.SubGraphAddInputs(builder, vectors[1])
    tflite.SubGraphAddOutputs(builder, vectors[2])
    tflite.SubGraphAddOperators(builder, vectors[3])
    tflite.SubGraphAddName(builder, name)
    graph = tflite.SubGraphEnd(builder)
    code_tables = []
    for code in codes:
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, code)
        tflite.OperatorCodeAddBuiltinCode(builder, code)
        tflite.OperatorCodeAddVersion(builder, 3)
        code_tables.append(tflite.OperatorCodeEnd(builder))
    graphs = _offsets(builder, tflite.ModelStartSubgraphsVector, [graph])
    code_vector = _offsets(builder, tflite.ModelStartOperatorCodesVector, code_tables)
    buffer_vector = _offsets(builder, tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, code_vector)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, buffer_vector)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(
    builder: flatbuffers.Builder, name: str, shape: tuple[int, ...], kind: int, buffer: int, axis: int, scales: list[float]
) -> int:
    scale = builder.CreateNumpyVector(np.array(scales, np.float32))
    zero_point = builder.CreateNumpyVector(np.zeros(len(scales), np.int64))
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scale)
    tflite.QuantizationParametersAddZeroPoint(builder, zero_point)
    tflite.QuantizationParametersAddQuantizedDimension(builder, axis)
    quantization = tflite.QuantizationParametersEnd(builder)
    label = builder.CreateString(name)
    sizes = builder.CreateNumpyVector(_int32(shape))
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, sizes)
    tflite.TensorAddType(builder, kind)
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddName(builder, label)
    tflite.TensorAddQuantization(builder, quantization)
    return int(tflite.TensorEnd(builder))


def _operator(
    builder: flatbuffers.Builder, code_index: int, code: int, inputs: list[int], output: int, layer: dict[str, Any]
) -> int:
    activation = tflite.ActivationFunctionType.RELU if layer["relu"] else tflite.ActivationFunctionType.NONE
    if code == tflite.BuiltinOperator.ADD:
        tflite.AddOptionsStart(builder)
        options, options_type = tflite.AddOptionsEnd(builder), tflite.BuiltinOptions.AddOptions
    elif code == tflite.BuiltinOperator.CONV_2D:
        tflite.Conv2DOptionsStart(builder)
        tflite.Conv2DOptionsAddPadding(builder, tflite.Padding.SAME)
        tflite.Conv2DOptionsAddStrideW(builder, 1)
        tflite.Conv2DOptionsAddStrideH(builder, 1)
        tflite.Conv2DOptionsAddDilationWFactor(builder, layer["dilation"])
        tflite.Conv2DOptionsAddFusedActivationFunction(builder, activation)
        options, options_type = tflite.Conv2DOptionsEnd(builder), tflite.BuiltinOptions.Conv2DOptions
    else:
        tflite.DepthwiseConv2DOptionsStart(builder)
        tflite.DepthwiseConv2DOptionsAddPadding(builder, tflite.Padding.SAME)
        tflite.DepthwiseConv2DOptionsAddStrideW(builder, 1)
        tflite.DepthwiseConv2DOptionsAddStrideH(builder, 1)
        tflite.DepthwiseConv2DOptionsAddDepthMultiplier(builder, 1)
        tflite.DepthwiseConv2DOptionsAddDilationWFactor(builder, layer["dilation"])
        tflite.DepthwiseConv2DOptionsAddFusedActivationFunction(builder, activation)
        options, options_type = tflite.DepthwiseConv2DOptionsEnd(builder), tflite.BuiltinOptions.DepthwiseConv2DOptions
    read, written = builder.CreateNumpyVector(_int32(inputs)), builder.CreateNumpyVector(_int32([output]))
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, code_index)
    tflite.OperatorAddInputs(builder, read)
    tflite.OperatorAddOutputs(builder, written)
    tflite.OperatorAddBuiltinOptionsType(builder, options_type)
    tflite.OperatorAddBuiltinOptions(builder, options)
    return int(tflite.OperatorEnd(builder))


def _buffer(builder: flatbuffers.Builder, data: np.ndarray | None) -> int:
    vector = None if data is None else builder.CreateNumpyVector(np.frombuffer(data.tobytes(), np.uint8))
    tflite.BufferStart(builder)
    if vector is not None:
        tflite.BufferAddData(builder, vector)
    return int(tflite.BufferEnd(builder))


def _offsets(builder: flatbuffers.Builder, start: Any, offsets: list[int]) -> int:
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _int32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)
