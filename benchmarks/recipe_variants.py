"""The configs of the recipes that ``recipe.py`` compares."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config

from mmseg_ignite.apis import load_config

SCRATCH = str(Path(__file__).parents[1] / 'configs/segformer/segformer_mit-b0_1xb4-scratch_ignite-128x128.py')
META = ('roi', 'patient', 'um_per_px', 'metadata', 'ori_shape', 'img_shape', 'pad_shape', 'flip', 'flip_direction')
PACK = dict(type='PackSegInputs', meta_keys=META)
KEPT = ('RandomDihedral', 'PackTissueInputs', 'PackSegInputs')
STOCK_OPTIMISER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(pos_block=dict(decay_mult=0.0), norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0))
    ),
)
STOCK_LOSS = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
LADDER = ('stock', '+model', '+half', '+loss', '+crops', '+settings', '+stain', 'ours')
"""Each adds one change to the previous: our model, half precision where the device supports it, our loss, our crops, the
settings for random weights (128 px crops, lower learning rate, no dropout), our stain augmentation, and weight averaging."""
CONTROL = 'stock+settings'
"""stock with the settings for random weights, which any mmseg user could choose."""


def _stain(*transforms: dict) -> Callable[[Config], None]:
    """Replace the colour augmentation."""

    def change(cfg: Config) -> None:
        kept = [t for t in cfg.train_dataloader.dataset.pipeline if t.type in KEPT]
        cfg.train_dataloader.dataset.pipeline = [kept[0], *transforms, kept[1]]

    return change


def _crops(**settings) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg.train_dataloader.dataset.crops.update(settings)
        cfg.model.data_preprocessor.update(size=None, size_divisor=32)

    return change


def _batch(size: int) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg.train_dataloader.batch_size = size

    return change


def _optimiser(**settings) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg.optim_wrapper.optimizer.update(settings)

    return change


def _average(momentum: float | None) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        hooks = [hook for hook in cfg.custom_hooks if hook.type != 'EMAHook']
        cfg.custom_hooks = hooks + ([dict(type='EMAHook', momentum=momentum, update_buffers=True)] if momentum else [])

    return change


def _grow(*steps: tuple[float, int]) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg.model.data_preprocessor.update(size=None, size_divisor=32)
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='CropGrowthHook', steps=steps)]

    return change


def _earlier(cfg: Config) -> None:
    _earlier_settings(cfg)
    _stain(dict(type='HEDJitter'), dict(type='RandomScannerEffects'))(cfg)


def _earlier_settings(cfg: Config) -> None:
    """Use the settings for ImageNet weights with ten times their learning rate."""
    _crops(crop_size=(256, 256))(cfg)
    cfg.optim_wrapper.optimizer.lr = 6e-4
    cfg.model.backbone.drop_path_rate = cfg.model.decode_head.dropout_ratio = 0.1


SCANNER, LIGHT = dict(type='RandomScannerEffects'), dict(type='HEDJitter', sigma=0.1, bias=0.05)
CHANGES = {
    'earlier': _earlier,
    'ce': lambda cfg: cfg.model.decode_head.loss_decode.update(dice=0.0),
    'uniform': _crops(class_probability=0.0),
    'fewer-classes': _crops(class_probability=0.25),
    'anyscale': _crops(um_per_px=(0.4, 0.625), rotation='any', resample_probability=1.0),
    'weights': lambda cfg: cfg.model.decode_head.loss_decode.update(temperature=0.5),
    'dropping': lambda cfg: (
        cfg.model.backbone.update(drop_path_rate=0.1),
        cfg.model.decode_head.update(dropout_ratio=0.1),
    ),
    'raw': _average(None),
    'shortmean': _average(0.05),
    'grow': _grow((0.6, 128), (0.85, 192)),
    'crops192': _crops(crop_size=(192, 192)),
    'crops256': _crops(crop_size=(256, 256)),
    'batch8': _batch(8),
    'lr15': _optimiser(lr=1.5e-4),
    'lr30': _optimiser(lr=3e-4),
    'lr60': _optimiser(lr=6e-4),
    'lr200': _optimiser(lr=2e-3),
    'nostain': _stain(),
    'photo': _stain(dict(type='PhotoMetricDistortion')),
    'hed': _stain(dict(type='HEDJitter'), SCANNER),
    'hedstrong': _stain(dict(type='HEDJitter', sigma=0.3, bias=0.1), SCANNER),
    'lab': _stain(dict(type='LABJitter'), SCANNER),
    'hedlab': _stain(dict(type='HEDJitter', sigma=0.2, bias=0.1), dict(type='LABJitter'), SCANNER),
    'mixture': _stain(
        dict(type='HEDJitter', sigma=0.2, bias=0.1, prob=0.5),
        dict(type='LABJitter', prob=0.5),
        dict(type='RandomScannerEffects', blur_prob=0.3, jpeg_prob=0.3),
    ),
    'strong': _stain(
        dict(type='HEDJitter', sigma=0.3, bias=0.15),
        dict(type='LABJitter', mean=(12.0, 9.0, 10.0), spread=0.2),
        SCANNER,
    ),
    'macenko': _stain(dict(type='MacenkoAugment'), SCANNER),
    'randstainna': _stain(dict(type='RandStainNA'), LIGHT, SCANNER),
    'randstainna-half': _stain(dict(type='RandStainNA', prob=0.5), LIGHT, SCANNER),
    'randstainna-hed': _stain(dict(type='RandStainNA'), dict(type='HEDJitter', sigma=0.25, bias=0.15), SCANNER),
}
"""Single changes; ``ours-NAME-NAME`` applies them to ours in this order."""


def is_variant(name: str) -> bool:
    """Whether ``name`` is in the ladder, the control, or ours with known changes."""
    return name in (*LADDER, CONTROL) or (name.startswith('ours-') and bool(_split(name.removeprefix('ours-'))))


def _split(text: str) -> list[str] | None:
    """Split names of changes joined by hyphens, which names may contain too; return None if one is unknown."""
    if not text:
        return []
    for name in sorted(CHANGES, key=len, reverse=True):
        if f'{text}-'.startswith(f'{name}-') and (rest := _split(text[len(name) + 1 :])) is not None:
            return [name, *rest]
    return None


def configured(variant: str, config: str, data: str, protocol: str, seed: int, work_dir: str) -> Config:
    """Return the config of a variant: ``config`` with parts removed or changed."""
    cfg = load_config(config, dict(data_root=data, protocol=protocol, **{'randomness.seed': seed}), work_dir)
    from_scratch = 'scratch' in str(config)
    if from_scratch:
        cfg.model.backbone.init_cfg, cfg.model.test_cfg = None, dict(mode='whole')
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    # Each training has one core, so workers would not help.
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type == 'EMAHook']
    cfg.default_hooks.checkpoint = dict(type='TissueCheckpointHook', by_epoch=False, interval=10**9, save_last=True)
    cfg.default_hooks.logger.interval, cfg.log_level = 10**9, 'ERROR'
    if variant == CONTROL:
        _use_stock(cfg, [step for step in LADDER[1:] if step != '+settings'], data, protocol, from_scratch)
    elif variant in LADDER:
        _use_stock(cfg, LADDER[LADDER.index(variant) + 1 :], data, protocol, from_scratch)
    else:
        for name in _split(variant.removeprefix('ours-')):
            CHANGES[name](cfg)
    # mmengine lays out the text of a config five times per run, which takes half of the time of a short test.
    return Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)


def _use_stock(cfg: Config, steps: Sequence[str], data: str, protocol: str, from_scratch: bool) -> None:
    """Replace the parts that these steps of the ladder add by mmseg's own."""
    if 'ours' in steps:
        _average(None)(cfg)
    if '+settings' in steps and from_scratch:
        _earlier_settings(cfg)
    if '+half' in steps:
        rate = cfg.optim_wrapper.optimizer.lr
        cfg.optim_wrapper = {**STOCK_OPTIMISER, 'optimizer': {**STOCK_OPTIMISER['optimizer'], 'lr': rate}}
    if '+stain' in steps:
        _stain(dict(type='PhotoMetricDistortion'))(cfg)
    if '+crops' in steps:
        side = tuple(cfg.train_dataloader.dataset.crops.crop_size)
        pipeline = [
            dict(type='LoadIGNITERegion'),
            dict(type='RandomCrop', crop_size=side, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            PACK,
        ]
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        dataset = dict(type='IGNITEDataset', data_root=data, protocol=protocol, split='train', pipeline=pipeline)
        cfg.train_dataloader.dataset = dataset
    if '+loss' in steps:
        cfg.model.decode_head.loss_decode = STOCK_LOSS
    if '+model' in steps:
        cfg.model.type = 'EncoderDecoder'
        cfg.model.backbone.type, cfg.model.decode_head.type = 'MixVisionTransformer', 'SegformerHead'
