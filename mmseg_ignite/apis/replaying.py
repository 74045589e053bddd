"""Repeat a training step whose loss was NaN or infinite, and find where it comes from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ..datasets import IGNITECropDataset
from ..datasets.deferred import changed_image
from ..engine.checkpoints import load_weights
from ..engine.devices import find_device
from ..engine.nonfinite_batch import read_batch
from ..errors import IgniteError
from ..files import check_outputs, result_file, writing
from ..labels import CLASSES, IGNORE, release_ids
from ..visualization.contact_sheet import Crop, draw_contact_sheet
from .checks import check_data
from .configuration import building, resolved


def replay(
    cfg: Config,
    batch: str | Path,
    checkpoint: str | Path | None = None,
    device: str | None = 'cpu',
    out: str | Path | None = None,
) -> dict:
    """Repeat the step that :class:`FiniteLossHook <mmseg_ignite.engine.hooks.FiniteLossHook>` stopped at.

    Crops are read again from the data; a crop that is not the one of the training is an error. The step has the precision
    and the random numbers of the training, so that on the same kind of device its loss is the same. A picture of the crops
    with their labels, ``BATCH_crops.png``, is written.

    Args:
        cfg: config of the training, best the one in its work dir; it is not changed.
        batch: ``nonfinite_batch_ITER.json`` in the work dir of the training, beside its .pth file.
        checkpoint: other weights. Defaults to None: those before the step.
        device: e.g. 'cuda:0'; None for the best one. Defaults to 'cpu'.
        out: folder of the picture. Defaults to None: that of ``batch``.

    Returns:
        ``losses`` of the batch {name: value}; ``logged``, those of the training; ``module``, (name, class, whether its
        inputs were finite) of the first module with an output that is not finite, or None; ``weights``, names of weights
        that are not finite; ``crops``, for each crop its ``roi``, ``key``, ``losses`` alone, ``values`` (lowest and highest
        of the image, before and after the data preprocessor) and ``pixels`` {class: number}; ``picture``, its path or None.

    Raises:
        IgniteError: a file is missing or damaged, config and batch do not fit, or the picture cannot be written.

    Example:
        >>> found = replay(load_config('work/my_config.py'), 'work/nonfinite_batch_120.json')
        >>> found['module']
        ('decode_head.fusion_conv.bn', 'BatchNorm2d', True)
    """
    cfg = resolved(cfg)
    step, tensors = read_batch(batch)
    picture = Path(out or Path(batch).parent) / f'{Path(batch).stem}_crops.png'
    check_outputs([picture], [batch])
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    samples, classes = _samples(cfg, step, tensors, batch)
    model = _model(cfg, tensors.get('state_dict'), checkpoint, batch).to(find_device(device)).train()
    broken = [name for name, value in model.state_dict().items() if not _finite(value)]
    run = _Run(model, getattr(torch, step['precision']), tensors.get('rng', {}))
    losses, module = run.losses(samples)
    found = dict(
        losses=losses,
        logged=step['losses'],
        module=module,
        weights=broken,
        # Twice each, since batch normalisation needs more than one value per channel.
        crops=[
            dict(
                roi=crop.get('roi'),
                key=crop.get('key'),
                losses=run.losses([sample, sample])[0],
                values=run.ranges(sample),
                pixels=_pixels(sample, classes),
            )
            for crop, sample in zip(step['crops'], samples)
        ],
    )
    return dict(found, picture=_draw(picture, step, samples, classes))


def replay_text(found: dict) -> str:
    """Return the result of :func:`replay` as lines of text."""

    def numbers(losses: dict) -> str:
        return ', '.join(f'{name} {float(value):.5g}' for name, value in losses.items())

    lines = [f'logged in the training: {numbers(found["logged"])}', f'repeated: {numbers(found["losses"])}']
    if found['weights']:
        lines.append(f'{len(found["weights"])} weights are not finite before the step, e.g. {found["weights"][0]}')
    if found['module']:
        name, kind, finite = found['module']
        lines.append(
            f'first output that is not finite: {name} ({kind}), whose inputs are {"" if finite else "not "}finite'
        )
    for number, crop in enumerate(found['crops']):
        wrong = not all(np.isfinite(value) for value in crop['losses'].values())
        (low, high), (low_in, high_in) = crop['values'].values()
        lines += [
            f'crop {number}, {crop["roi"]}, key {crop["key"]}{": ALONE NOT FINITE" if wrong else ""}',
            f'    alone: {numbers(crop["losses"])}',
            f'    values {low:g} .. {high:g}, {low_in:.3g} .. {high_in:.3g} in the network',
            '    pixels: ' + ', '.join(f'{name} {count:,}' for name, count in crop['pixels'].items()),
        ]
    return '\n'.join([*lines, *([f'picture: {found["picture"]}'] if found['picture'] else [])])


class _Run:
    """Forward passes of a model from the same weights and random numbers."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, rng: dict[str, Tensor]) -> None:
        self.model, self.dtype, self.rng = model, dtype, rng
        self.device = next(model.parameters()).device
        self._buffers = {name: value.clone() for name, value in model.named_buffers()}

    def losses(self, samples: list[dict]) -> tuple[dict[str, float], tuple[str, str, bool] | None]:
        """Return the losses of a batch, and the first module with an output that is not finite."""
        devices = [self.device] if self.device.type == 'cuda' else []
        half = self.dtype != torch.float32
        first: list[tuple[str, str, bool]] = []
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            torch.autocast(self.device.type, self.dtype if half else None, enabled=half),
            _watched(self.model, first),
        ):
            self._restore()
            data = self.model.data_preprocessor(pseudo_collate(samples), True)
            logged = self.model.parse_losses(self.model(**data, mode='loss'))[1]
        return {name: float(value) for name, value in logged.items()}, first[0] if first else None

    def _restore(self) -> None:
        """Set buffers (the statistics of batch normalisation) and random numbers to those before the step."""
        for name, value in self.model.named_buffers():
            value.copy_(self._buffers[name])
        if 'cpu' in self.rng:
            torch.set_rng_state(self.rng['cpu'])
        if 'cuda' in self.rng and self.device.type == 'cuda':
            torch.cuda.set_rng_state(self.rng['cuda'], self.device)

    def ranges(self, sample: dict) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest value of an image, as read and as the network gets it."""
        with torch.no_grad():
            inputs = self.model.data_preprocessor(pseudo_collate([sample]), True)['inputs']
        images = dict(read=sample['inputs'], network=inputs[0])
        return {name: (float(image.min()), float(image.max())) for name, image in images.items()}


def _finite(values: object) -> bool:
    """Return whether all floating-point tensors in an object of tuples, lists and dictionaries are finite."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    if isinstance(values, dict):
        values = list(values.values())
    return all(map(_finite, values)) if isinstance(values, (list, tuple)) else True


@contextmanager
def _watched(model: torch.nn.Module, first: list) -> Iterator[None]:
    """Append to ``first`` each module with an output that is not finite, in the order in which they finish."""

    def watch(name: str) -> object:
        def hook(module: torch.nn.Module, inputs: tuple, output: object) -> None:
            if not _finite(output):
                first.append((name or type(model).__name__, type(module).__name__, _finite(inputs)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _model(cfg: Config, weights: dict | None, checkpoint: object, batch: object) -> torch.nn.Module:
    """Build the model of a config and load weights into it."""
    cfg.model.backbone.init_cfg = None
    with building(cfg):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint is not None:
        load_weights(model, checkpoint)
        return model
    if weights is None:
        raise IgniteError(
            f'{batch} was saved without weights (keep_weights=False of FiniteLossHook): name a checkpoint of the training.'
        )
    own = model.state_dict()
    if wrong := [k for k in own.keys() | weights.keys() if _shape(own, k) != _shape(weights, k)]:
        raise IgniteError(
            f'{batch} has the weights of another model ({len(wrong)} of {len(own)} differ, e.g. {min(wrong)}): use the '
            'config in the work dir of the training.'
        )
    model.load_state_dict(weights)
    return model


def _shape(tensors: dict[str, Tensor], name: str) -> tuple | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _samples(cfg: Config, step: dict, tensors: dict, batch: object) -> tuple[list[dict], list[str]]:
    """Return the packed samples of a batch and the names of their classes."""
    settings = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    if 'inputs' in tensors:
        return _stored(tensors), list((settings.get('metainfo') or {}).get('classes') or CLASSES)
    check_data(cfg, 'train_dataloader')
    with building(cfg):
        dataset = DATASETS.build(settings)
    if not isinstance(dataset, IGNITECropDataset) or not step['crops']:
        raise IgniteError(
            f'{batch} has {len(step["crops"])} crops of a crop stream, but the training data set of the config is '
            f'{type(dataset).__name__}: use the config in the work dir of the training.'
        )
    keys = [[tuple(part) if isinstance(part, list) else part for part in crop['key']] for crop in step['crops']]
    samples = [dataset[tuple(key)] for key in keys]
    for crop, sample in zip(step['crops'], samples):
        meta = sample['data_samples']
        position = {key: list(v) if isinstance(v, tuple) else v for key, v in meta.get('crop')._asdict().items()}
        if (meta.get('roi', crop['roi']), position) != (crop['roi'], crop['position']):
            raise IgniteError(
                f'crop {crop["key"]} of {batch} is another one with this config and data: use the config in the work dir of '
                'the training and the data that it was trained on.'
            )
    return samples, list(dataset.metainfo['classes'])


def _stored(tensors: dict) -> list[dict]:
    """Return samples of stored images and labels."""
    samples = []
    for image, labels in zip(tensors['inputs'], tensors['labels']):
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=tuple(image.shape[1:]), ori_shape=tuple(image.shape[1:])))
        samples.append(dict(inputs=image, data_samples=sample))
    return samples


def _pixels(sample: dict, classes: list[str]) -> dict[str, int]:
    """Count the pixels of each class in the labels of a sample."""
    ids, counts = np.unique(sample['data_samples'].gt_sem_seg.data.numpy(), return_counts=True)
    names = [
        classes[i] if 0 <= i < len(classes) else 'not annotated' if i == IGNORE else f'id {i}' for i in ids.tolist()
    ]
    return dict(zip(names, counts.tolist()))


def _draw(path: Path, step: dict, samples: list[dict], classes: list[str]) -> Path | None:
    """Write a contact sheet of the samples; return its path, or None if the images are not 8-bit BGR of IGNITE's classes."""
    train_ids, crops = release_ids(classes), []
    for number, (crop, sample) in enumerate(zip(step['crops'], samples)):
        image = sample['inputs']
        if train_ids is None or image.dtype != torch.uint8 or image.shape[0] != 3:
            return None
        rgb = np.ascontiguousarray(changed_image(sample)[..., ::-1])
        labels = train_ids[sample['data_samples'].gt_sem_seg.data[0].numpy().astype(np.uint8)]
        number = crop['key'][1] if 'key' in crop else number
        train_id = crop['position']['train_id'] if 'position' in crop else None
        crops.append(
            Crop(rgb, labels, str(crop.get('roi', crop.get('image'))), crop.get('um_per_px', 0.5), number, train_id)
        )
    sheet = draw_contact_sheet(crops, f'Iteration {step["iteration"]}: loss {step["losses"].get("loss")}')
    with writing(path), result_file(path) as partial:
        sheet.save(partial)
    return path
