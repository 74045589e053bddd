"""benchmarks/recipe.py: statistics compared with plain loops, folds, variants and the command."""

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, tool

sys.path.insert(0, str(ROOT / 'benchmarks'))
import recipe_crossval as crossval  # noqa: E402
import recipe_variants as variants  # noqa: E402

from mmseg_ignite.datasets.prepared import read_index, select  # noqa: E402
from mmseg_ignite.labels import CLASSES  # noqa: E402

PATIENTS = {f'roi{i}': f'p{i // 2}' for i in range(14)}


def results(rng, variant, seeds=3, folds=2, skill=0.6):
    """Make results for four classes; the higher ``skill``, the more pixels are correct."""
    found = []
    for seed in range(seeds):
        for fold in range(folds):
            rois = [roi for roi, patient in PATIENTS.items() if int(patient[1:]) % folds == fold]
            counts = {}
            for condition in crossval.CONDITIONS:
                matrices = np.zeros((len(rois), len(CLASSES), len(CLASSES)), int)
                matrices[:, :4, :4] = rng.integers(0, 900, (len(rois), 4, 4))
                matrices[:, range(4), range(4)] += rng.integers(0, int(9000 * skill), (len(rois), 4))
                counts[condition] = crossval.marginals(SimpleNamespace(names=rois, matrices=matrices))
            found.append(dict(variant=variant, seed=seed, fold=fold, counts=counts, iterations=10, crops_s=1.0))
    return found


@pytest.fixture(scope='module')
def configured(prepared, tmp_path_factory):
    """Return a function that makes the config of a variant; each config file is loaded once."""
    work_dir, loaded, load = str(tmp_path_factory.mktemp('work')), {}, variants.load_config

    def load_once(*arguments):
        key = repr(arguments)
        if key not in loaded:
            loaded[key] = load(*arguments)
        return copy.deepcopy(loaded[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, 'load_config', load_once)
        yield lambda name: variants.configured(name, variants.SCRATCH, str(prepared), 'fold0', 3, work_dir)


def plain_miou(rows):
    """Return the mIoU in percent of (annotated, predicted, correct) pixels of each class, with a plain loop."""
    truth, predicted, correct = np.sum(rows, 0)
    ious = [c / (t + p - c) for t, p, c in zip(truth, predicted, correct) if t > 0]
    return 100 * sum(ious) / len(ious)


def test_scores_use_the_pooled_counts_of_each_seed():
    found = results(np.random.default_rng(), 'a')
    scores = crossval.Scores(found, PATIENTS)
    for condition in crossval.CONDITIONS:
        expected = [
            plain_miou([rows for r in found if r['seed'] == seed for rows in r['counts'][condition].values()])
            for seed in range(3)
        ]
        np.testing.assert_allclose(scores.by_seed(condition), expected)


def test_bootstrap_samples_patients_and_seeds():
    rng = np.random.default_rng()
    found = results(rng, 'a')
    scores = crossval.Scores(found, PATIENTS)
    weights = rng.multinomial(7, np.full(7, 1 / 7), 20).astype(float)
    seeds = np.random.default_rng(5).integers(3, size=(20, 3))
    expected = []
    for weight, chosen in zip(weights, seeds):
        scores_of_seeds = []
        for seed in chosen:
            rows = [
                np.array(counts) * weight[scores.units.index(PATIENTS[roi])]
                for r in found
                if r['seed'] == seed
                for roi, counts in r['counts']['clean'].items()
            ]
            scores_of_seeds.append(plain_miou(rows))
        expected.append(np.mean(scores_of_seeds))
    np.testing.assert_allclose(scores.samples('clean', weights, np.random.default_rng(5)), expected)


def test_intervals_contain_the_means_and_detect_a_better_recipe():
    rng = np.random.default_rng()
    scores = {
        name: crossval.Scores(results(rng, name, skill=skill), PATIENTS) for name, skill in (('stock', 0.3), ('b', 0.9))
    }
    rows = crossval.intervals(scores, 'stock', samples=500)
    for name, score in scores.items():
        mean, low, high, *_ = rows[name]['clean']
        assert mean == pytest.approx(score.by_seed('clean').mean()) and low < mean < high
    shifted = np.mean([scores['b'].by_seed(c).mean() for c in crossval.SHIFTS])
    assert rows['b']['shifted'][0] == pytest.approx(shifted) == pytest.approx(scores['b'].by_seed('shifted').mean())
    assert rows['b']['loss'][0] == pytest.approx(rows['b']['clean'][0] - shifted)
    assert rows['b']['clean'][3] == pytest.approx(rows['b']['clean'][0] - rows['stock']['clean'][0])
    assert rows['b']['clean'][4] > 0, 'three times the skill is better in every sample'
    assert rows['stock']['clean'][3] == 0


def test_incomplete_seeds_are_skipped():
    found = results(np.random.default_rng(), 'a')
    scores = crossval.Scores([r for r in found if (r['seed'], r['fold']) != (1, 0)], PATIENTS)
    assert scores.seeds == [0, 2] and scores.counts['clean'].shape[0] == 2


def test_every_roi_is_tested_once_without_its_patient_in_training(release, tmp_path):
    data = crossval.prepared(release, tmp_path / 'data', 3)
    index, tested = read_index(data), []
    patient = {roi['name']: roi['patient'] for roi in index['rois']}
    for fold in range(3):
        test, train = (select(index, f'fold{fold}', part, data) for part in ('test', 'train'))
        assert not {r['patient'] for r in test} & {r['patient'] for r in train}
        assert len(test) + len(train) == len(patient)
        tested += [r['name'] for r in test]
    assert sorted(tested) == sorted(patient)
    assert crossval.prepared(release, tmp_path / 'data', 3) == data
    assert read_index(data) == index


@pytest.mark.parametrize('name', [*variants.LADDER, variants.CONTROL, *(f'ours-{name}' for name in variants.CHANGES)])
def test_every_variant_has_a_config(configured, name):
    assert variants.is_variant(name)
    cfg = configured(name)
    assert cfg.randomness.seed == 3 and cfg.model.test_cfg.mode == 'whole'
    assert (cfg.model.type == 'EncoderDecoder') == (name in ('stock', variants.CONTROL))


def test_settings_of_each_step_of_the_ladder(configured):
    """Loss, our crops, crop size, learning rate, drop path, dropout, photometric distortion, weight averaging."""
    found = {}
    for name in (*variants.LADDER, variants.CONTROL):
        cfg = configured(name)
        dataset = cfg.train_dataloader.dataset
        ours = dataset.type == 'IGNITECropDataset'
        size = dataset.crops.crop_size if ours else dataset.pipeline[1].crop_size
        found[name] = (
            cfg.model.decode_head.loss_decode.type, ours, size[0], cfg.optim_wrapper.optimizer.lr,
            cfg.model.backbone.drop_path_rate, cfg.model.decode_head.dropout_ratio,
            any(t.type == 'PhotoMetricDistortion' for t in dataset.pipeline),
            any(hook.type == 'EMAHook' for hook in cfg.custom_hooks),
        )  # fmt: skip
    stock, small = (256, 6e-4, 0.1, 0.1), (128, 2e-4, 0.0, 0.0)
    assert found == {
        'stock': ('CrossEntropyLoss', False, *stock, True, False),
        '+model': ('CrossEntropyLoss', False, *stock, True, False),
        '+half': ('CrossEntropyLoss', False, *stock, True, False),
        '+loss': ('TissueLoss', False, *stock, True, False),
        '+crops': ('TissueLoss', True, *stock, True, False),
        '+settings': ('TissueLoss', True, *small, True, False),
        '+stain': ('TissueLoss', True, *small, False, False),
        'ours': ('TissueLoss', True, *small, False, True),
        'stock+settings': ('CrossEntropyLoss', False, *small, True, False),
    }


def test_names_of_variants():
    assert variants.is_variant('ours-uniform-raw') and not variants.is_variant('ours-better')
    assert not variants.is_variant('stock-raw')


def test_command_trains_what_is_missing_and_prints_a_table(release, tmp_path, capsys):
    arguments = ['crossval', '--release', release, '--work-dir', tmp_path, '--folds', 2, '--seconds', 0.5, '--seeds', 1]

    def run(*more):
        assert tool('recipe', *arguments, '--variants', 'ours', *more, folder='benchmarks') == 0
        return capsys.readouterr().out

    assert '2 trainings' in run()
    lines = crossval.read_results(tmp_path / 'crossval.jsonl')
    assert [line['fold'] for line in sorted(lines, key=lambda line: line['fold'])] == [0, 1]
    index = read_index(next(tmp_path.glob('ignite-*-2-folds')))
    for condition in crossval.CONDITIONS:
        tested = sorted(roi for line in lines for roi in line['counts'][condition])
        assert tested == sorted(roi['name'] for roi in index['rois'])
    assert lines[0]['counts']['clean'] != lines[0]['counts']['scanner']
    again = run('--equal', 'iterations', '--iterations', 1, '--only-folds', 1)
    assert '1 trainings' in again and 'Equal 1 iterations' in again and '| ours |' in again
    line = crossval.read_results(tmp_path / 'crossval.jsonl')[-1]
    assert (line['fold'], line['iterations'], line['equal']) == (1, 1, 'iterations')
    assert '0 trainings' in run()
    assert (tmp_path / 'crossval.0.5-s.png').is_file() and (tmp_path / 'crossval.1-iterations.png').is_file()
