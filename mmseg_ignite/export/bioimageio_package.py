"""A BioImage.IO package: ``rdf.yaml`` (model description 0.5), weights, test tensors and a cover beside it.

The description keeps to what QuPath's reader understands as well as ``bioimageio.core``: one image in and one out with the
axes b c y x, a size reference with its offset written out, a batch axis without a size, no pre- or postprocessing steps
(normalisation and softmax are in the network), and pixel sizes in micrometres.

Specification: https://github.com/bioimage-io/spec-bioimage-io
"""

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from ..errors import IgniteError
from ..extras import import_extra
from ..preparation.synthetic import draw_tissue
from ..provenance import file_sha256
from .comparison import as_input, compare, example_inputs, windows_of
from .description import ModelDescription
from .model_card import FILE as CARD
from .network import ExportNetwork
from .onnx_graph import OPSET
from .onnx_package import write_graph
from .packages import Exported
from .torchscript import torchscript_runner, write_torchscript

RDF, TORCHSCRIPT, ONNX, COVER = 'rdf.yaml', 'model.pt', 'model.onnx', 'cover.png'
TEST_INPUT, TEST_OUTPUT = 'test_input.npy', 'test_output.npy'
FILES = (RDF, TORCHSCRIPT, ONNX, TEST_INPUT, TEST_OUTPUT, COVER, CARD)
FORMAT_VERSION = '0.5.4'
"""Of the description; newer libraries read it, and it has all that is written here."""
_WHOLE_IMAGES = (512, 512)
"""px; size of the recorded input of a model that was tested on whole images."""
_COVER_SIDE = 256
_LIBRARY_FAULT = 'Error calling function `package_file_descr_serializer`'
"""bioimageio.spec 0.5.12 with pydantic 2.14 says this of every package."""
_TOLERANCE = dict(relative_tolerance=1e-3, absolute_tolerance=1e-4)
"""Of the outputs on other machines: probabilities, 0..1. The absolute one must be below 1 % of the largest output."""


def check(exported: Exported) -> None:
    """Raise IgniteError if the model cannot be written as a BioImage.IO package."""
    ExportNetwork(exported.model, 'float', 'probabilities')


@torch.no_grad()
def write(folder: Path, exported: Exported) -> None:
    """Write the package into an empty folder, compare its weights with the model and test it with ``bioimageio.core``.

    Raises:
        IgniteError: the written weights do not compute what the model computes, or the package does not pass the test.
    """
    network = ExportNetwork(exported.model, 'float', 'probabilities')
    size = exported.description.window or _WHOLE_IMAGES
    tissue = draw_tissue(size)
    image = as_input(network, torch.from_numpy(tissue)[None])
    probabilities = network(image)
    np.save(folder / TEST_INPUT, image.numpy())
    np.save(folder / TEST_OUTPUT, probabilities.numpy())
    labels = probabilities[0].argmax(0).numpy()
    _write_cover(folder / COVER, tissue, np.array(exported.description.palette, np.uint8)[labels])
    (folder / CARD).write_text(exported.card, encoding='utf-8')
    inputs = example_inputs(network, windows_of(exported.images, size), [(n, *size) for n in (1, 2)])
    weights = dict(torchscript=_write_torchscript(folder, network, inputs, exported))
    if all(map(find_spec, ('onnx', 'onnxscript', 'onnxruntime'))):
        weights['onnx'] = _write_onnx(folder, network, inputs, exported)
    else:
        exported.report('note: the package has no ONNX weights, which need "pip install \'mmseg_ignite[export]\'".')
    text = yaml.safe_dump(_description(exported.description, size, weights), sort_keys=False, allow_unicode=True)
    (folder / RDF).write_text(text, encoding='utf-8')
    _validate(folder / RDF, weights, exported)


def _write_torchscript(folder: Path, network: ExportNetwork, inputs: Sequence[Tensor], exported: Exported) -> dict:
    """Record the network, compare, and return its entry of the description."""
    path = folder / TORCHSCRIPT
    write_torchscript(network, path, tuple(inputs[0].shape[2:]))
    exported.report(f'bioimageio: {TORCHSCRIPT}: {compare(network, torchscript_runner(path), inputs, TORCHSCRIPT)}')
    version = re.match(r'\d+\.\d+\.\d+', torch.__version__)[0]
    return dict(source=TORCHSCRIPT, sha256=file_sha256(path), pytorch_version=version)


def _write_onnx(folder: Path, network: ExportNetwork, inputs: Sequence[Tensor], exported: Exported) -> dict:
    """Like :func:`_write_torchscript`."""
    path = folder / ONNX
    exported.report(f'bioimageio: {ONNX} is recorded, which takes a minute or more ...')
    exported.report(f'bioimageio: {ONNX}: {write_graph(path, network, exported.description, inputs)}')
    return dict(source=ONNX, sha256=file_sha256(path), opset_version=OPSET, parent='torchscript')


def _write_cover(path: Path, tissue: np.ndarray, colours: np.ndarray) -> None:
    """Write synthetic tissue and its predicted labels side by side, twice as wide as high."""
    halves = [
        cv2.resize(half, (_COVER_SIDE, _COVER_SIDE), interpolation=method)
        for half, method in ((tissue, cv2.INTER_AREA), (colours, cv2.INTER_NEAREST))
    ]
    _, content = cv2.imencode('.png', cv2.cvtColor(np.hstack(halves), cv2.COLOR_RGB2BGR))
    path.write_bytes(content.tobytes())


def _description(description: ModelDescription, size: tuple[int, int], weights: dict) -> dict:
    """Return the content of ``rdf.yaml``."""
    um_per_px = float(f'{description.um_per_px:.4g}')
    name = re.sub(r'[^A-Za-z0-9_+\- ()]', '_', description.name)[:64]
    return dict(
        format_version=FORMAT_VERSION,
        type='model',
        name=name if len(name) >= 5 else f'model {name}',
        description=f'Tissue segmentation of H&E images of lung cancer at {um_per_px:g} um/px, '
        f'{len(description.classes)} classes. RGB 0..255 in, probabilities out; the network normalises images itself.',
        authors=[dict(name='not stated')],
        documentation=CARD,
        license='CC-BY-NC-SA-4.0',  # of the data; the weights have none of their own
        covers=[COVER],
        tags=[
            'semantic-segmentation',
            'histology',
            'histopathology',
            'h-e',
            'lung',
            'cancer',
            '2d',
            'pytorch',
            'qupath',
        ],
        cite=[
            dict(
                text='Spronck et al. 2025, A tissue and cell-level annotated H&E and PD-L1 histopathology image dataset in '
                'non-small cell lung cancer',
                doi='10.48550/arXiv.2507.16855',
            ),
            dict(text='Xie et al. 2021, SegFormer', doi='10.48550/arXiv.2105.15203'),
        ],
        inputs=[
            dict(
                id='input',
                description='RGB image, 0..255',
                axes=_axes(['red', 'green', 'blue'], um_per_px, *size),
                test_tensor=dict(source=TEST_INPUT),
                data=dict(type='float32', range=[0.0, 255.0]),
            )
        ],
        outputs=[
            dict(
                id='output',
                description='probability of each class',
                axes=_axes(
                    list(description.classes),
                    um_per_px,
                    *(dict(tensor_id='input', axis_id=axis, offset=0) for axis in 'yx'),
                ),
                test_tensor=dict(source=TEST_OUTPUT),
                data=dict(type='float32', range=[0.0, 1.0]),
            )
        ],
        weights=weights,
        config=dict(
            bioimageio=dict(reproducibility_tolerance=[_TOLERANCE]),
            mmseg_ignite={key: json.loads(text) for key, text in description.metadata().items()},
        ),
    )


def _axes(channels: list[str], um_per_px: float, height: object, width: object) -> list[dict]:
    space = dict(type='space', unit='micrometer', scale=um_per_px)
    return [
        dict(type='batch'),
        dict(type='channel', channel_names=channels),
        dict(space, id='y', size=height),
        dict(space, id='x', size=width),
    ]


def _validate(path: Path, weights: dict, exported: Exported) -> None:
    """Run the test of ``bioimageio.core`` with all weights; report in one line if it cannot be run."""
    remedy = 'run "pip install \'mmseg_ignite[bioimageio]\'" and export again.'
    if find_spec('bioimageio') is None or find_spec('bioimageio.core') is None:
        exported.report(f'bioimageio: {RDF} was not validated, since bioimageio.core is not installed: {remedy}')
        return
    core = import_extra('bioimageio.core', 'the test of BioImage.IO packages', 'bioimageio')
    import_extra('loguru', 'bioimageio.core', 'bioimageio').logger.disable('bioimageio')
    for kind in weights:
        summary = core.test_model(path, weight_format=kind)
        if summary.status == 'passed':
            continue
        errors = [f'{".".join(map(str, e.loc))} {e.msg}'.strip() for detail in summary.details for e in detail.errors]
        reason = ' '.join((errors or [summary.status])[0].split())[:300]
        if _LIBRARY_FAULT in reason:
            exported.report(
                f'bioimageio: {RDF} was not validated, since the installed bioimageio.spec and pydantic do not fit each '
                f'other: {remedy}'
            )
            return
        raise IgniteError(
            f'{RDF} with its {kind} weights does not pass the test of bioimageio.core {core.__version__} ({reason}); a valid '
            'package was expected: it was discarded, export with the tested versions of the libraries.'
        )
    exported.report(f'bioimageio: {RDF} passes the test of bioimageio.core {core.__version__} ({", ".join(weights)})')
