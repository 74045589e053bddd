"""QuPath's pixel classifier around a TorchScript file: its JSON, and the rules of that JSON.

The rules were read in the sources of QuPath 0.5 to 0.8 and of its Deep Java Library extension; QuPath did not run. QuPath
creates these objects without their constructors, so that a field that the file does not have is null: ``outputNames`` must
be there, and ``outputChannels`` must not, since QuPath then takes names and colours from ``classificationLabels``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..regions.qupath import name_fault
from .description import ModelDescription

MODEL = 'model.pt'
PLACEHOLDER = f'file:///FOLDER/{MODEL}'
"""Stands for the address of the TorchScript file, which differs between computers."""
STEP = 32
"""px; windows and tiles are multiples of it, so that the maps of all tiles lie on one grid."""
WINDOW = 512
"""px; window of models that were tested on whole images."""
IGNORED = 'Background'
"""Class of the glass. Its name gets a ``*``, by which QuPath makes no objects of it unless asked."""
_MICROMETRE = '\u00b5m'  # MICRO SIGN; QuPath compares it, and the Greek letter looks the same
_CONVERT, _DNN, _MULTIPLY = 'op.core.convert', 'op.ml.opencv-dnn', 'op.core.multiply'


def window_of(description: ModelDescription) -> tuple[int, int]:
    """Return the (h, w) px of the tiles that the network sees in QuPath."""
    return description.window or (WINDOW, WINDOW)


def resolution_of(description: ModelDescription) -> float:
    """Return the resolution of the training in um/px, with four digits: exact multiples of a slide's pixels stay exact."""
    return float(f'{description.um_per_px:.4g}')


def window_fault(window: tuple[int, int]) -> str | None:
    """Return what is wrong with a window, or None."""
    if all(side % STEP == 0 and side >= 2 * STEP for side in window):
        return None
    return f'the window is {window[0]} x {window[1]} px; multiples of {STEP} px from {2 * STEP} px were expected'


def tile_padding(window: tuple[int, int]) -> int:
    """Return the px at each side of a window that only give context: an eighth of the shorter side, rounded up to 16."""
    return math.ceil(min(window) / 8 / (STEP // 2)) * (STEP // 2)


def class_names(description: ModelDescription) -> tuple[str, ...]:
    """Return the names of the classes in QuPath."""
    return tuple(f'{name}*' if name == IGNORED else name for name in description.classes)


def qupath_classifier(description: ModelDescription) -> dict:
    """Return the content of a pixel classifier's JSON file for ``PROJECT/classifiers/pixel_classifiers/NAME.json``.

    The address of the TorchScript file is ``PLACEHOLDER``.
    """
    (height, width), padding = window_of(description), tile_padding(window_of(description))
    labels = zip(class_names(description), description.palette)
    size = dict(value=resolution_of(description), unit=_MICROMETRE)
    model = dict(
        dnn_model='DjlDnnModel',
        uris=[PLACEHOLDER],
        engine='PyTorch',
        ndLayout='NCHW',
        inputs=dict(input0=dict(shape=[1, 3, height, width])),
        outputs=dict(output0=dict(shape=[1, len(description.classes), height, width])),
        lazyInitialize=True,
    )
    network = dict(
        type=_DNN,
        model=model,
        inputWidth=width,
        inputHeight=height,
        outputNames=[],
        padding=dict.fromkeys(('x1', 'x2', 'y1', 'y2'), padding),
    )
    ops = [
        dict(type=_CONVERT, pixelType='FLOAT32'),
        network,
        dict(type=_MULTIPLY, values=[255.0]),
        dict(type=_CONVERT, pixelType='UINT8'),
    ]
    return dict(
        pixel_classifier_type='OpenCVPixelClassifier',
        metadata=dict(
            inputPadding=padding,
            inputResolution=dict(
                pixelWidth=size,
                pixelHeight=dict(size),
                zSpacing=dict(value=1.0, unit='z-slice'),
                timeUnit='SECONDS',
                timepoints=[],
            ),
            inputWidth=width,
            inputHeight=height,
            inputNumChannels=3,
            outputType='PROBABILITY',
            outputPixelType='UINT8',
            classificationLabels={str(i): dict(name=n, color=list(c)) for i, (n, c) in enumerate(labels)},
        ),
        op=dict(
            type='data.op.channels',
            colorTransforms=[dict(channelName=name) for name in ('Red', 'Green', 'Blue')],
            op=dict(type='op.core.sequential', ops=ops),
        ),
    )


def qupath_classifier_faults(content: object) -> list[str]:
    """Check the content of a pixel classifier's JSON file by the rules of QuPath's reader.

    Returns:
        One sentence per fault; an empty list if QuPath would read the file and apply the network as it was trained. QuPath
        itself does not run.

    Example:
        >>> qupath_classifier_faults(json.loads(Path('pixel_classifier.json').read_text('utf-8')))
        []
    """
    try:
        return list(_faults(content))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return [f'a part of the classifier is missing or of another type ({type(error).__name__}: {error})']


def _faults(content: dict) -> Iterator[str]:
    metadata, op = content['metadata'], content['op']
    sequence = op['op']
    structure = list(
        _unequal(
            ('the list of keys', sorted(content), ['metadata', 'op', 'pixel_classifier_type']),
            ('pixel_classifier_type', content['pixel_classifier_type'], 'OpenCVPixelClassifier'),
            ('the type of op', op['type'], 'data.op.channels'),
            ('colorTransforms', op['colorTransforms'], [dict(channelName=name) for name in ('Red', 'Green', 'Blue')]),
            ('the type of op.op', sequence['type'], 'op.core.sequential'),
            (
                'the list of types of op.op.ops',
                [x['type'] for x in sequence['ops']],
                [_CONVERT, _DNN, _MULTIPLY, _CONVERT],
            ),
        )
    )
    yield from structure
    if structure:
        return
    first, network, multiply, last = sequence['ops']
    yield from _unequal(
        ('the first pixelType', first['pixelType'], 'FLOAT32'),
        ('the list of factors', multiply['values'], [255.0]),
        ('the last pixelType', last['pixelType'], 'UINT8'),
    )
    yield from _metadata_faults(metadata)
    yield from _size_faults(metadata, network)
    yield from _model_faults(network, len(metadata['classificationLabels']))
    yield from _label_faults(metadata['classificationLabels'])


def _unequal(*rules: tuple[str, object, object]) -> Iterator[str]:
    """Yield a sentence for each (name, found, expected) that differs, also in type."""
    for name, found, expected in rules:
        if found != expected or type(found) is not type(expected):
            yield f'{name} is {found!r}; {expected!r} was expected'


def _metadata_faults(metadata: dict) -> Iterator[str]:
    resolution = metadata['inputResolution']
    yield from _unequal(
        ('inputNumChannels', metadata['inputNumChannels'], 3),
        ('outputType', metadata['outputType'], 'PROBABILITY'),  # MULTICLASS_PROBABILITY thresholds each channel at 0.5
        ('outputPixelType', metadata['outputPixelType'], 'UINT8'),
        ('the unit of pixelWidth', resolution['pixelWidth']['unit'], _MICROMETRE),
        ('the unit of pixelHeight', resolution['pixelHeight']['unit'], _MICROMETRE),
        ('the value of pixelHeight', resolution['pixelHeight']['value'], resolution['pixelWidth']['value']),
        ('zSpacing', resolution['zSpacing'], dict(value=1.0, unit='z-slice')),
        ('timeUnit', resolution['timeUnit'], 'SECONDS'),
        ('timepoints', resolution['timepoints'], []),
    )
    value = resolution['pixelWidth']['value']
    if type(value) is not float or not (math.isfinite(value) and value > 0):
        yield f'the value of pixelWidth is {value!r}; a number of um above 0 was expected'
    if 'outputChannels' in metadata:
        yield 'outputChannels is set, so that QuPath would not take the channels from classificationLabels'


def _size_faults(metadata: dict, network: dict) -> Iterator[str]:
    """Check window and padding, which are stated three times."""
    window, padding = (metadata['inputHeight'], metadata['inputWidth']), metadata['inputPadding']
    if not all(type(x) is int for x in (*window, padding)):
        yield f'inputHeight, inputWidth and inputPadding are {(*window, padding)}; integers were expected'
        return
    if fault := window_fault(window):
        yield fault
    if not 0 < 2 * padding < min(window) or any((side - 2 * padding) % STEP for side in window):
        yield f'inputPadding is {padding}; tiles that are multiples of {STEP} px were expected'
    yield from _unequal(
        ('inputHeight of the network', network['inputHeight'], window[0]),
        ('inputWidth of the network', network['inputWidth'], window[1]),
        ('padding of the network', network['padding'], dict.fromkeys(('x1', 'x2', 'y1', 'y2'), padding)),
    )


def _model_faults(network: dict, classes: int) -> Iterator[str]:
    model, size = network['model'], [network['inputHeight'], network['inputWidth']]
    yield from _unequal(
        ('outputNames', network['outputNames'], []),  # null is an error in QuPath
        ('dnn_model', model['dnn_model'], 'DjlDnnModel'),
        ('engine', model['engine'], 'PyTorch'),
        ('ndLayout', model['ndLayout'], 'NCHW'),
        ('the shape of inputs', model['inputs'], dict(input0=dict(shape=[1, 3, *size]))),
        ('the shape of outputs', model['outputs'], dict(output0=dict(shape=[1, classes, *size]))),
        ('lazyInitialize', model['lazyInitialize'], True),
        ('the number of uris', len(model['uris']), 1),
    )
    if any(not str(uri).startswith('file:///') or not str(uri).endswith('.pt') for uri in model['uris']):
        yield f'uris is {model["uris"]!r}; the absolute address file:///.../{MODEL} was expected'


def _label_faults(labels: dict) -> Iterator[str]:
    yield from _unequal(
        ('the list of keys of classificationLabels', list(labels), [str(i) for i in range(len(labels))])
    )
    if not labels:
        yield 'there are no classificationLabels'
    names = [label['name'] for label in labels.values()]
    for name in names:
        if fault := name_fault(name.removesuffix('*')):
            yield fault
        if name.endswith('*') != (name.rstrip('*') == IGNORED):
            yield f'the class name {name!r} is wrong; a * at the end of {IGNORED} alone was expected'
    if len({name.removesuffix('*') for name in names}) < len(names):
        yield 'a class name occurs twice'
    for label in labels.values():
        colour = label['color']
        if len(colour) != 3 or not all(type(x) is int and 0 <= x <= 255 for x in colour):
            yield f'the color of {label["name"]!r} is {colour!r}; three integers of 0..255 were expected'
