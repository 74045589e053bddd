"""A tiny trained model on disk, as tools/export.py takes it."""

import torch
from conftest import DEMO_CONFIG
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image
from tiny_segformer import randomised

from mmseg_ignite.apis import load_config
from mmseg_ignite.apis.exporting import _exported
from mmseg_ignite.engine.ensembles import write_ensemble
from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation.synthetic import draw_tissue

SIZE = 64
OPTIONS = {
    'model.backbone.embed_dims': 8,
    'model.backbone.num_layers': (1, 1, 1, 1),
    'model.backbone.num_heads': (1, 1, 2, 2),
    'model.decode_head.in_channels': (8, 8, 16, 16),
    'model.decode_head.channels': 16,
    'model.test_cfg.crop_size': (SIZE, SIZE),
    'model.test_cfg.stride': (48, 48),
}
RECORD = TrainingRecord(['anna', 'bert', 'carl'], ['dora'], data_sha256='ab' * 32, um_per_px=0.5)


def tiny_config(**options):
    return load_config(DEMO_CONFIG, {**OPTIONS, 'data_root': '/nowhere/ignite', **options})


def write_checkpoint(path, cfg, record=RECORD):
    """Write random weights."""
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    randomised(model)
    meta = dict(iter=7, cfg='secret = "/home/anna"', **(record.as_meta() if record else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(meta, dataset_meta=dict(classes=CLASSES))), path)
    return path


def write_members(folder, cfg, count=2, patients=('anna', 'bert')):
    """Write an ensemble and return its JSON file."""
    paths = [write_checkpoint(folder / f'fold{number}' / 'iter_7.pth', cfg) for number in range(count)]
    write_ensemble(folder / 'ensemble.json', paths, patients)
    return folder / 'ensemble.json'


def exported(cfg, checkpoint, report=lambda line: None, metrics=None):
    """Return what a format is written from."""
    image = checkpoint.with_name('tissue.png')
    Image.fromarray(draw_tissue((80, 96))).save(image)
    return _exported(cfg, checkpoint, 'normalised', 'logits', metrics, [image], report)
