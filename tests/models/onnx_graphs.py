"""Small ONNX graphs written by hand, and what they compute in NumPy."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mmseg_ignite.labels import CLASSES

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def metadata(inputs='normalised', outputs='logits', **changes):
    """Return the metadata of an export, with changes; None removes a key."""
    facts = dict(
        classes=CLASSES, um_per_px=0.4, channel_order='RGB', mean=MEAN, std=STD, inputs=inputs, outputs=outputs
    )
    facts['checkpoints'] = [dict(file='iter_1.pth', sha256='0' * 64)]
    return {key: json.dumps(value) for key, value in {**facts, **changes}.items() if value is not None}


def weights(rng):
    """Return the weights (C, 3) and bias (C,) of a linear classifier of pixels."""
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((len(CLASSES), 3), len(CLASSES)))


def reference(rgb, weight, bias, channel_order='RGB'):
    """Return the logits (H, W, C) of an image (H, W, 3) uint8 in float64."""
    x = rgb if channel_order == 'RGB' else rgb[..., ::-1]
    return (x - np.float64(MEAN)) / np.float64(STD) @ weight.T.astype(np.float64) + bias


def graph(weight, bias, inputs='normalised', outputs='logits', channel_order='RGB', sizes=('n', 'h', 'w')):
    """Return a model that classifies each pixel by itself."""
    n, h, w = sizes
    nodes, constants, x = [], [], 'image'

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(kind, *names, **attributes):
        nonlocal x
        nodes.append(helper.make_node(kind, [x, *names], [f'x{len(nodes)}'], **attributes))
        x = f'x{len(nodes) - 1}'

    if inputs == 'nhwc':
        node('Transpose', perm=(0, 3, 1, 2))
    if inputs in ('nhwc', 'nchw'):
        node('Cast', to=TensorProto.FLOAT)
    if inputs != 'normalised':
        if channel_order == 'BGR':
            node('Gather', constant('order', np.int64([2, 1, 0])), axis=1)
        node('Sub', constant('mean', np.float32(MEAN).reshape(1, 3, 1, 1)))
        node('Div', constant('std', np.float32(STD).reshape(1, 3, 1, 1)))
    node('Conv', constant('weight', weight[:, :, None, None]), constant('bias', bias))
    if outputs == 'probabilities':
        node('Softmax', axis=1)
    if outputs == 'labels':
        node('ArgMax', axis=1, keepdims=0)
        node('Cast', to=TensorProto.UINT8)
    nodes[-1].output[0] = outputs
    raw = inputs in ('nhwc', 'nchw')
    image = helper.make_tensor_value_info(
        'image', TensorProto.UINT8 if raw else TensorProto.FLOAT, (n, h, w, 3) if inputs == 'nhwc' else (n, 3, h, w)
    )
    is_labels, shape = outputs == 'labels', (n, len(weight), h, w)
    result = helper.make_tensor_value_info(
        outputs, TensorProto.UINT8 if is_labels else TensorProto.FLOAT, (n, h, w) if is_labels else shape
    )
    made = helper.make_graph(nodes, 'pixels', [image], [result], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)


def save(path, model, facts):
    """Write a model with metadata to a file."""
    helper.set_model_props(model, facts)
    path.write_bytes(model.SerializeToString())
    return path


def written(path, rng, inputs='normalised', outputs='logits', channel_order='RGB', **changes):
    """Write a graph with random weights and metadata; return its path and weights."""
    weight, bias = weights(rng)
    model = graph(weight, bias, inputs, outputs, channel_order)
    return save(path, model, metadata(inputs, outputs, channel_order=channel_order, **changes)), weight, bias
