"""The model card of an exported model, in Markdown (Mitchell et al. 2019, Model Cards for Model Reporting)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import yaml

from ..evaluation.bootstrap import FEW_PATIENTS
from ..labels import CLASSES
from ..models.onnx_file import INPUTS
from .description import ModelDescription
from .machine_paths import masked_command

FILE = 'MODEL_CARD.md'
"""Name of the card in a package."""
_ENCODER = (
    '> **The encoder alone**: this package has the weights of the encoder, without the decode head. It gives feature maps, '
    'not classes. Parameters, classes and scores below are those of the whole model.'
)
_LONGEST = 120
_PLAIN = r'((?<=[^\W_])_(?=[^\W_])|(?<=\d):(?=\d\d(?!\d)))'
"""Within words and times of day ``_`` and ``:`` mean nothing in Markdown."""
_OVERALL = {'mIoU': 'mIoU', 'mDice': 'mDice', 'aAcc': 'pixel accuracy (aAcc)'}
_CITATION = """\
- Data: Spronck et al., *A tissue and cell-level annotated H&E and PD-L1 histopathology image dataset in non-small cell lung
  cancer*, [arXiv 2507.16855](https://arxiv.org/abs/2507.16855), 2025.
- Architecture of the SegFormer family: Xie et al., *SegFormer: Simple and Efficient Design for Semantic Segmentation with
  Transformers*, NeurIPS 2021.
- Framework: MMSegmentation Contributors, 2020; mmseg_ignite."""


def model_card(
    description: ModelDescription, scores: dict | None, front_matter: bool = False, encoder_only: bool = False
) -> str:
    """Return the model card of a model.

    Patients are counted, never named; neither paths of the data nor of the machine are printed. Names of classes and files
    are escaped, so that they are shown as they are and never read as Markdown or HTML.

    Args:
        scores: content of ``metrics.json`` as :func:`mmseg_ignite.evaluation.saved_metrics.read_metrics` returns it; None if
            the model was not tested.
        front_matter: begin with the YAML block that the Hugging Face Hub reads. Defaults to False.
        encoder_only: say that the package holds the encoder alone. Defaults to False.

    Example:
        >>> card = model_card(description, read_metrics('work_dirs/b0/metrics.json'))
    """
    parts = [
        f'# {escaped(description.name)}',
        f'{_networks(description)} for tissue segmentation of H&E images at {description.um_per_px:.3g} um/px, '
        f'{len(description.classes)} classes.',
        *([_ENCODER] if encoder_only else []),
        *(f'> **Warning:** {text}' for text in _warnings(description, scores)),
        _section('Model', _model(description)),
        _section('Intended use', _use(description)),
        _section('Input and output', _interface(description)),
        _section('Data', _data(description, scores)),
        _section('Scores', _scores(description, scores)),
        _section('Known limits', _limits(description, scores)),
        _section('Provenance', _provenance(description, scores)),
        _section('Licence', _licence(description)),
        _section('Citation', [_CITATION]),
    ]
    return (_front_matter(description, scores, encoder_only) if front_matter else '') + '\n\n'.join(parts) + '\n'


def escaped(text: object, longest: int = _LONGEST) -> str:
    r"""Return a text as one line of Markdown that shows it as it is, cut to ``longest`` characters.

    Example:
        >>> escaped('<b>|www.x.org')
        '\\<b\\>\\|www\\.x.org'
    """
    line = re.sub(rf'{_PLAIN}|([\\`*_\[\]<>|&~$:@!#])', lambda found: found[1] or rf'\{found[2]}', _line(text, longest))
    return re.sub(r'(?i)(www)\.', r'\1\.', line)


def _line(text: object, longest: int = _LONGEST) -> str:
    """Return a text as one line of printable characters."""
    line = ' '.join(os.fsencode(str(text)).decode('utf-8', 'backslashreplace').split())
    line = ''.join(character if character.isprintable() else '?' for character in line)
    return line if len(line) <= longest else line[: longest - 3] + '...'


def _section(title: str, lines: Iterable[str]) -> str:
    return f'## {title}\n' + '\n'.join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows)]


def _networks(description: ModelDescription) -> str:
    kind = escaped(description.architecture)
    return kind if description.members == 1 else f'Ensemble of {description.members} networks ({kind})'


def _warnings(description: ModelDescription, scores: dict | None) -> Iterator[str]:
    if not scores:
        yield 'the scores of this model were not measured.'
    elif seen := len(set(scores.get('seen_patients') or ())):
        yield (
            f'{seen} of the {scores.get("patients") or seen} test patients were used to train or to choose this model: its '
            'scores are too high.'
        )
    if scores and scores.get('shift'):
        yield (
            f'the scores are not those of the original images, which were recoloured as if another laboratory had stained '
            f'and scanned them ({escaped(scores["shift"])}).'
        )
    if scores and scores.get('mIoU') is None:
        yield 'the test had no annotated pixel, so there are no scores.'
    missing = sum(record is None for record in description.records)
    if missing and not description.stated_patients:
        who = 'the checkpoint does' if description.members == 1 else f'{missing} of the checkpoints do'
        yield (
            f'{who} not state the patients of the training, so whether the test patients were among them is unknown.'
        )


def _model(description: ModelDescription) -> list[str]:
    members = '1' if description.members == 1 else f'{description.members}, whose probabilities are averaged'
    return _table(
        ('', ''),
        [
            ('architecture', escaped(description.architecture)),
            ('parameters', f'{description.parameters:,}'),
            ('networks', members),
            ('resolution', f'{description.um_per_px:.3g} um/px'),
        ],
    )


def _use(description: ModelDescription) -> list[str]:
    return [
        '- For research: semantic segmentation of tissue in H&E images of non-small-cell lung cancer at '
        f'{description.um_per_px:.3g} um/px.',
        '- Not for diagnosis, and not for decisions about patients. It is not a medical device.',
        '- Not for other stains, organs, species or resolutions, nor for frozen sections or cytology, unless scores on such '
        'images were measured.',
    ]


def _interface(description: ModelDescription) -> list[str]:
    if description.window is None:
        window = 'whole images'
    else:
        size, stride = (' x '.join(map(str, pair)) for pair in (description.window, description.stride))
        window = f'windows of {size} px (height x width), {stride} px apart; overlapping windows are averaged'
    mean, std = (', '.join(f'{value:g}' for value in values) for values in (description.mean, description.std))
    colours = zip(description.classes, description.palette)
    return [
        f'- Images: 8-bit RGB at {description.um_per_px:.3g} um/px; resample images of another resolution first.',
        f'- The network itself takes {INPUTS["normalised"]}: {description.channel_order}, (value - mean) / standard '
        f'deviation with mean {mean} and standard deviation {std}. Whether a package normalises itself is stated in it.',
        f'- Tested on {window}.',
        '- Output: a score or a label for each pixel; channel or label i is class i of the table.',
        '',
        *_table(
            ('index', 'class', 'colour (RGB)', 'hex'),
            (
                (str(i), escaped(name), ', '.join(map(str, rgb)), '#{:02x}{:02x}{:02x}'.format(*rgb))
                for i, (name, rgb) in enumerate(colours)
            ),
        ),
    ]


def _count(number: int | None) -> str:
    return 'not stated' if number is None else f'{number:,}'


def _data(description: ModelDescription, scores: dict | None) -> list[str]:
    scores = scores or {}
    checksums = sorted({record.data_sha256 for record in description.records if record and record.data_sha256})
    tested = (scores.get('provenance') or {}).get('data_sha256')
    origin = (
        'The classes are those of the IGNITE data set: H&E images of non-small-cell lung cancer and metastases, [Zenodo '
        '15674785](https://zenodo.org/records/15674785), CC BY-NC-SA 4.0. The model may have been trained on other data in '
        'this form, so compare the checksums with those of your prepared data set (`index.json`).'
        if set(description.classes) <= set(CLASSES)
        else 'The classes are not those of the IGNITE data set; the origin of the data is not stated.'
    )
    rows = [
        ('patients in the training, of the initial weights too', _count(description.train_patients)),
        ('patients whose scores chose the weights', _count(description.val_patients)),
        ('patients in the test', _count(scores.get('patients'))),
        ('ROIs in the test', _count(scores.get('rois'))),
        ('SHA-256 of the training data', ', '.join(map(escaped, checksums)) or 'not stated'),
        ('SHA-256 of the test data', escaped(tested) if tested else 'not stated'),
        ('protocol (split of the patients)', escaped(scores.get('protocol') or 'not stated')),
        ('tested part', escaped(scores.get('split') or 'not stated')),
    ]
    return [origin, '', *_table(('', ''), rows)]


def _percent(value: object, interval: object = None) -> str:
    """Return a score with its interval, if both are numbers."""
    if not _is_number(value):
        return '-'
    if isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(_is_number, interval)):
        return f'{value:.1f} ({interval[0]:.1f} to {interval[1]:.1f})'
    return f'{value:.1f}'


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _get(content: object, *keys: str) -> object:
    """Look up nested dictionaries; what is missing or no dictionary is an empty one."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if content is not None else {}


def _scores(description: ModelDescription, scores: dict | None) -> Iterator[str]:
    if not scores:
        yield 'Not measured. Test the model with `tools/test.py` and export it again.'
        return
    figures = _get(scores, 'intervals', 'figures')
    level, unit = _get(scores, 'intervals', 'level') or 95, _get(scores, 'intervals', 'unit') or 'patient'
    yield f'Percent, with {level} % bootstrap intervals over {escaped(unit)}s. All pixels of the test are pooled.'
    yield ''
    yield from _table(
        ('', 'score'), ((text, _percent(scores.get(key), _get(figures, key))) for key, text in _OVERALL.items())
    )
    present, classes = scores.get('classes_present'), scores.get('classes') or {}
    if present is not None:
        yield ''
        yield f'mIoU and mDice are means over the {present} classes that the test has.'
    if classes:
        yield ''
        yield from _table(
            ('class', 'IoU', 'Dice', 'pixels', 'patients'),
            (_class_row(name, row, _get(scores, 'intervals', 'classes', name)) for name, row in classes.items()),
        )
    if other := [name for name in description.classes if classes and name not in classes]:
        yield ''
        yield f'Not in the scores: {", ".join(map(escaped, other))}.'
    if note := _get(scores, 'intervals', 'note'):
        yield ''
        yield f'Note: {escaped(note, 400)}.'


def _class_row(name: str, row: dict, intervals: object) -> tuple[str, ...]:
    if not row['pixels']:
        found = ', but predicted' if row['predicted_pixels'] else ''
        return escaped(name), f'absent from the test{found}', '-', '0', '-'
    patients = _get(intervals, 'patients')
    known = {} if patients == 1 else intervals  # an interval over one patient has no width
    cells = (_percent(row[key], _get(known, key)) for key in ('IoU', 'Dice'))
    return escaped(name), *cells, f'{row["pixels"]:,}', str(patients) if type(patients) is int else '-'


def _limits(description: ModelDescription, scores: dict | None) -> Iterator[str]:
    yield '- Each pixel gets one of the classes above, also where the tissue is none of them.'
    yield '- Other laboratories stain and scan differently. Scores there are usually lower; measure them before use.'
    if description.window is not None:
        yield '- Scores hold for overlapping windows. Programs that do not average them have seams and lower scores.'
    if not scores:
        return
    rare = [
        name
        for name, row in (scores.get('classes') or {}).items()
        if row['pixels']
        and type(n := _get(scores, 'intervals', 'classes', name, 'patients')) is int
        and n < FEW_PATIENTS
    ]
    if absent := [name for name, row in (scores.get('classes') or {}).items() if not row['pixels']]:
        yield f'- Not measured, since the test has no such tissue: {", ".join(map(escaped, absent))}.'
    if rare:
        yield f'- Measured on fewer than {FEW_PATIENTS} patients: {", ".join(map(escaped, rare))}.'


def _provenance(description: ModelDescription, scores: dict | None) -> list[str]:
    tested = (scores or {}).get('provenance') or {}
    versions = sorted({record.version for record in description.records if record and record.version})
    rows = [(f'SHA-256 of {escaped(name)}', checksum) for name, checksum in description.checkpoints]
    rows += [
        ('SHA-256 of the config without paths', description.config_sha256),
        ('exported by', f'mmseg_ignite {escaped(description.version)}'),
        ('trained by', ', '.join(f'mmseg_ignite {escaped(version)}' for version in versions) or 'not stated'),
    ]
    if tested:
        command = masked_command(str(tested.get('command') or ''))
        rows += [
            ('tested by', f'mmseg_ignite {escaped(tested.get("version") or "of unknown version")}'),
            ('date of the test', escaped(tested.get('date') or 'not stated')),
            ('command of the test, without paths', escaped(command or 'not stated', 1000)),
            ('SHA-256 of the config of the test', escaped(tested.get('config_sha256') or 'not stated')),
        ]
    return _table(('', ''), rows)


def _licence(description: ModelDescription) -> list[str]:
    data = (
        'The IGNITE data are CC BY-NC-SA 4.0: attribution, no commercial use, share alike. If the weights were trained on '
        'them, treat these terms as terms of the weights too, unless the owners of the data state otherwise. '
        if set(description.classes) <= set(CLASSES)
        else ''
    )
    return [
        f'- Weights: no licence is stated for them. {data}Weights that the training started from may add terms of their own.',
        '- Code (mmseg_ignite): Apache-2.0.',
        '- This is what is known, not legal advice.',
    ]


def _front_matter(description: ModelDescription, scores: dict | None, encoder_only: bool) -> str:
    """Return the YAML block of the Hugging Face Hub, see https://huggingface.co/docs/hub/model-cards."""
    task = 'image-feature-extraction' if encoder_only else 'image-segmentation'
    content: dict[str, object] = dict(
        library_name='transformers',
        pipeline_tag=task,
        license='other',
        license_name='see-model-card',
        tags=[
            task,
            'semantic-segmentation',
            'histopathology',
            'lung-cancer',
            'segformer',
            'mmseg-ignite',
        ],
    )
    if encoder_only:  # it has no classes, so no scores of its own
        return _yaml_block(content)
    content['metrics'] = ['mean_iou']
    measured = scores and _is_number(scores.get('mIoU')) and not scores.get('seen_patients') and not scores.get('shift')
    if measured:
        values = {'mean_iou': 'mIoU', 'dice': 'mDice', 'accuracy': 'aAcc'}
        result = dict(
            task=dict(type='image-segmentation'),
            dataset=dict(name=_line(f'protocol {scores.get("protocol") or "unknown"}'), type='tissue-segmentation'),
            metrics=[
                dict(type=kind, name=f'{key} (%)', value=round(float(scores[key]), 2))
                for kind, key in values.items()
                if _is_number(scores.get(key))
            ],
        )
        content['model-index'] = [dict(name=_line(description.name), results=[result])]
    return _yaml_block(content)


def _yaml_block(content: dict) -> str:
    return f'---\n{yaml.safe_dump(content, sort_keys=False)}---\n\n'
