"""The model card: counts without names, scores as in metrics.json, warnings, no Markdown from names."""

import dataclasses
import re

import numpy as np
import pytest
import yaml

from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.evaluation import Evaluation
from mmseg_ignite.export import ModelDescription
from mmseg_ignite.export.machine_paths import masked_command, masked_settings
from mmseg_ignite.export.model_card import escaped, model_card
from mmseg_ignite.labels import CLASSES, PALETTE

PATIENTS = ['patient-anna', 'patient-bert', 'patient-carl', 'patient-dora', 'patient-emil']
DESCRIPTION = ModelDescription(
    name='b0',
    architecture='FastMixVisionTransformer + FastSegformerHead',
    parameters=3_719_280,
    members=1,
    classes=CLASSES,
    palette=PALETTE,
    um_per_px=0.4999,
    channel_order='RGB',
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    window=(512, 512),
    stride=(384, 384),
    checkpoints=(('iter_7.pth', 'a1' * 32),),
    config_sha256='b2' * 32,
    records=(TrainingRecord(PATIENTS[:3], PATIENTS[3:4], data_sha256='c3' * 32, um_per_px=0.5, version='0.1.0'),),
)


def changed(**facts):
    return dataclasses.replace(DESCRIPTION, **facts)


@pytest.fixture(scope='module')
def scores():
    """Scores of five patients; the last class is absent, the one before is predicted only, one is of a single patient."""
    rng = np.random.default_rng()
    matrices = rng.integers(0, 90, (10, 16, 16)) + 200 * np.eye(16, dtype=int)
    matrices[:, 14:], matrices[:, :, 15] = 0, 0
    matrices[2:, 7] = 0
    names = [f'{PATIENTS[i // 2]}_roi{i}' for i in range(10)]
    metadata = [dict(roi=name, patient=PATIENTS[i // 2], organ='lung') for i, name in enumerate(names)]
    evaluation = Evaluation(names, matrices.astype(np.int64), CLASSES, metadata)
    return dict(
        evaluation.metrics(samples=200),
        checkpoint='/home/anna/work_dirs/b0/iter_7.pth',
        data='/home/anna/data/ignite',
        split='test',
        protocol='official',
        provenance=dict(
            version='0.1.0',
            date='2026-01-02T03:04:05+00:00',
            command='/home/anna/tools/test.py configs/b0.py /home/anna/iter_7.pth --cfg-options data_root=data/ours x=1',
            config_sha256='d4' * 32,
            checkpoint_sha256='a1' * 32,
            data_sha256='e5' * 32,
        ),
    )


def section(card, title):
    return re.search(rf'^## {re.escape(title)}\n(.*?)(?=^## |\Z)', card, re.DOTALL | re.MULTILINE)[1]


def row(card, start):
    """Return the cells of the table row that begins with a text."""
    line = next(line for line in card.splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_scores_with_intervals_are_those_of_the_test(scores):
    card = section(model_card(DESCRIPTION, scores), 'Scores')
    for key, text in {'mIoU': 'mIoU', 'mDice': 'mDice', 'aAcc': r'pixel accuracy (aAcc)'}.items():
        low, high = scores['intervals']['figures'][key]
        assert row(card, text)[1] == f'{scores[key]:.1f} ({low:.1f} to {high:.1f})'
    stroma, interval = scores['classes']['Stroma'], scores['intervals']['classes']['Stroma']
    cells = [f'{stroma[key]:.1f} ({interval[key][0]:.1f} to {interval[key][1]:.1f})' for key in ('IoU', 'Dice')]
    assert row(card, 'Stroma')[1:] == [*cells, f'{stroma["pixels"]:,}', '5']
    assert row(card, CLASSES[7])[1:] == [f'{scores["classes"][CLASSES[7]][key]:.1f}' for key in ('IoU', 'Dice')] + [
        f'{scores["classes"][CLASSES[7]]["pixels"]:,}',
        '1',
    ]
    assert row(card, 'Keratinization')[1] == 'absent from the test'
    assert row(card, 'Liver')[1] == 'absent from the test, but predicted'
    assert f'over the {scores["classes_present"]} classes' in card


def test_patients_are_counted_and_neither_they_nor_paths_are_named(scores):
    card = model_card(DESCRIPTION, dict(scores, seen_patients=PATIENTS[:2]))
    data = section(card, 'Data')
    assert row(data, 'patients in the training, of the initial weights too')[1] == '3'
    assert row(data, 'patients whose scores chose the weights')[1] == '1'
    assert row(data, 'patients in the test')[1] == '5'
    assert 'c3' * 32 in data and 'e5' * 32 in data and 'official' in data and '15674785' in data
    assert 'anna' not in card and 'patient-' not in card and '/home' not in card and 'data/ours' not in card
    assert r'test.py configs/b0.py ... --cfg-options data_root=... x=1' in card


def test_warnings(scores):
    assert '**Warning:**' not in model_card(DESCRIPTION, scores)
    seen = model_card(DESCRIPTION, dict(scores, seen_patients=PATIENTS[:2]))
    assert 'Warning:** 2 of the 5 test patients were used to train' in seen
    assert 'Warning:** the scores of this model were not measured' in model_card(DESCRIPTION, None)
    assert 'Not measured.' in section(model_card(DESCRIPTION, None), 'Scores')
    silent = model_card(changed(records=(None,)), scores)
    assert 'Warning:** the checkpoint does not state the patients' in silent
    assert row(silent, 'patients in the training, of the initial weights too')[1] == 'not stated'
    listed = changed(records=(None, DESCRIPTION.records[0]), stated_patients=frozenset({'zoe', PATIENTS[0]}))
    assert (listed.train_patients, listed.val_patients) == (4, None) and 'Warning' not in model_card(listed, scores)
    assert 'not those of the original images' in model_card(DESCRIPTION, dict(scores, shift='lab'))
    assert 'no annotated pixel' in model_card(DESCRIPTION, dict(scores, mIoU=None, mDice=None, aAcc=None))


def test_classes_have_their_colours(scores):
    table = section(model_card(DESCRIPTION, scores), 'Input and output')
    for number, (name, colour) in enumerate(zip(CLASSES, PALETTE)):
        assert row(table, str(number))[1:] == [
            name,
            ', '.join(map(str, colour)),
            '#' + ''.join(f'{value:02x}' for value in colour),
        ]


def test_all_sections_are_there_and_state_use_licence_and_limits(scores):
    card = model_card(DESCRIPTION, scores)
    titles = re.findall(r'^## (.+)$', card, re.MULTILINE)
    assert titles == [
        *('Model', 'Intended use', 'Input and output', 'Data', 'Scores', 'Known limits', 'Provenance'),
        *('Licence', 'Citation'),
    ]
    assert 'Not for diagnosis' in card and '0.5 um/px' in card and 'CC BY-NC-SA 4.0' in section(card, 'Licence')
    assert 'no licence is stated' in card and 'Apache-2.0' in card and 'Spronck' in section(card, 'Citation')
    assert 'Keratinization' in section(card, 'Known limits') and CLASSES[7] in section(card, 'Known limits')
    assert 'a1' * 32 in section(card, 'Provenance') and 'b2' * 32 in section(card, 'Provenance')


def test_names_are_no_markdown(scores):
    evil = '|x|<img src=y>\n## Title\n[a](http://b)`c`*d*_e_ www.f.org @g :h: $i$'
    description = changed(name=evil, classes=(evil, *CLASSES[1:]), checkpoints=((f'{evil}\udcff.pth', 'a1' * 32),))
    found = dict(scores, classes={evil: scores['classes']['Stroma'], **scores['classes']}, protocol=evil, split=evil)
    card = model_card(description, found)
    assert re.findall(r'^## (.+)$', card, re.MULTILINE) == re.findall(
        r'^## (.+)$', model_card(DESCRIPTION, scores), re.MULTILINE
    )
    plain = re.sub(r'\\[^\w\s]', '', card.replace('| --- ', ''))
    assert '<img' not in plain and '`c`' not in plain and '*d*' not in plain and 'www.f' not in plain
    assert not re.search(r'\[a\]|http://b|@g|:h:|\$i\$', plain)
    columns = {line.count('|') - line.count('\\|') for line in section(card, 'Input and output').splitlines()}
    assert columns <= {0, 5}
    assert card.encode('utf-8') and len(escaped('x' * 500)) == 120


def test_words_and_times_stay_readable():
    assert escaped('mit-b0_1xb8 at 2026-01-02T03:04:05') == 'mit-b0_1xb8 at 2026-01-02T03:04:05'
    assert escaped('_a_ a__b :x: 1:2') == r'\_a\_ a\_\_b \:x\: 1\:2'


def test_card_of_an_encoder_alone_says_so_and_claims_no_scores(scores):
    card = model_card(DESCRIPTION, scores, front_matter=True, encoder_only=True)
    found = yaml.safe_load(card.split('---\n')[1])
    assert found['pipeline_tag'] == 'image-feature-extraction' and not {'metrics', 'model-index'} & {*found}
    assert 'The encoder alone' in card and 'The encoder alone' not in model_card(DESCRIPTION, scores)


def test_damaged_intervals_are_left_out(scores):
    broken = dict(
        scores, intervals=dict(scores['intervals'], classes={'Stroma': dict(IoU=['a', None], Dice=5), 'Liver': 3})
    )
    card = section(model_card(DESCRIPTION, broken), 'Scores')
    assert row(card, 'Stroma')[1] == f'{scores["classes"]["Stroma"]["IoU"]:.1f}'


def test_front_matter_is_valid_and_has_scores_only_of_unseen_patients(scores):
    def front(found, **facts):
        text = model_card(changed(**facts), found, front_matter=True)
        assert text.startswith('---\n') and model_card(changed(**facts), found) in text
        return yaml.safe_load(text.split('---\n')[1])

    found = front(scores, name='a: "b"\n---\n')
    assert (found['library_name'], found['pipeline_tag'], found['license']) == (
        'transformers',
        'image-segmentation',
        'other',
    )
    assert found['metrics'] == ['mean_iou'] and 'histopathology' in found['tags']
    assert found['model-index'][0]['results'][0]['metrics'][0]['value'] == round(scores['mIoU'], 2)
    for other in (None, dict(scores, seen_patients=['x']), dict(scores, shift='lab'), dict(scores, mIoU=None)):
        assert 'model-index' not in front(other)


def test_commands_without_machine_paths():
    masked = masked_command(
        "tools/test.py 'C:\\Users\\anna\\c.py' "
        '"/home/Anna B/x.pth" ../anna/y ~/anna --data anna/z --work-dir=/anna s3://anna/w '
        '\'--cfg-options=a=["/home/Anna B/x", "/anna/y"]\' b=configs/x.py model.data_root=anna lr=1e-3 k=(1,/anna)'
    )
    assert 'anna' not in masked.lower() and masked.startswith('test.py ... ... ... ... --data ...')
    assert 'b=configs/x.py' in masked and 'lr=1e-3' in masked
    assert masked_command('a "b') is None and masked_command('') is None


def test_settings_without_machine_paths():
    found = masked_settings(
        dict(a=['/x', 'y/z', ('//h/s', 3)], data_root='q', b=dict(data_root='r', c='~u')), {'data_root': 'd'}
    )
    assert found == dict(a=['...', 'y/z', ('...', 3)], data_root='d', b=dict(data_root='d', c='...'))
