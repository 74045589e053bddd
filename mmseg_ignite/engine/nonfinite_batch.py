"""Files from which a training step whose loss is NaN or infinite can be repeated.

    nonfinite_batch_ITER.json   iteration, learning rate, losses, and for each crop its ROI, key and position
    nonfinite_batch_ITER.pth    the weights before the step, the states of torch's random generators and, for data sets
                                whose samples cannot be made again, their images and labels

The crops of an :class:`IGNITECropDataset <mmseg_ignite.datasets.IGNITECropDataset>` are a function of their key, (seed, n)
or (seed, n, (H, W)), so their pixels are not stored. In a distributed run the names of all processes but the first end with
``_rankR``.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..datasets.crop_stream import CropPosition
from ..errors import IgniteError
from ..files import atomic_file, check_outputs, write_result
from ..labels import NUM_CLASSES
from ..untrusted import read_json
from .checkpoints.opening import read_tensors
from .checkpoints.writing import save_tensors

FORMAT = 1
_MAX_CROP = 1 << 26
"""Largest crop that is read again, px."""


class WeightCopies:
    """Copies of a model's weights and of the states of torch's random generators before each of the last steps.

    A copy takes as much memory as the trained weights, on their device.

    Args:
        number: of copies.
    """

    def __init__(self, number: int) -> None:
        self._copies: list[dict[str, Tensor]] = [{} for _ in range(number)]
        self._next = 0
        self._frozen: set[str] | None = None

    def take(self, model: torch.nn.Module) -> dict:
        """Replace the oldest copy; return the new one: ``state_dict`` and ``rng``."""
        copy = self._copies[self._next]
        self._next = (self._next + 1) % len(self._copies)
        model = _unwrapped(model)
        if self._frozen is None:
            self._frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        weights = model.state_dict()
        # Those that do not change are not copied.
        copy.update((name, weights.pop(name)) for name in self._frozen & weights.keys())
        _copy(weights, copy)
        rng = dict(cpu=torch.get_rng_state())
        if torch.cuda.is_available():
            rng['cuda'] = torch.cuda.get_rng_state()  # a number on the host: the device is not waited for
        return dict(state_dict=copy, rng=rng)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy tensors, those of one type and device at once."""
    groups: dict[tuple, list[str]] = {}
    for name, value in source.items():
        if not isinstance(value, Tensor):  # extra state of a module
            continue
        if name not in target or (target[name].shape, target[name].device) != (value.shape, value.device):
            target[name] = torch.empty_like(value)
        groups.setdefault((value.dtype, value.device), []).append(name)
    with torch.no_grad():
        for names in groups.values():
            torch._foreach_copy_([target[name] for name in names], [source[name] for name in names])


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model


@dataclass
class Step:
    """A training step whose loss was not read yet."""

    runner: Runner
    batch: object  # as the data loader returned it
    outputs: dict[str, Tensor]  # every logged loss
    iteration: int
    rate: float
    before: dict | None = None  # see WeightCopies.take
    rois: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.rois = list(dict.fromkeys(str(roi) for sample in self.samples if (roi := sample.get('roi'))))

    @property
    def samples(self) -> list:
        """The data samples of the batch; empty for a batch of another form."""
        found = self.batch.get('data_samples') if isinstance(self.batch, dict) else None
        return list(found or ())

    def save(self) -> Path:
        """Write the two files into the work dir; return the JSON file.

        Raises:
            IgniteError: they cannot be written, or there is a file of this name that this package did not write.
        """
        rank = get_rank()
        path = Path(self.runner.work_dir) / f'nonfinite_batch_{self.iteration}{f"_rank{rank}" if rank else ""}.json'
        check_outputs([path])
        tensors = {} if self.before is None else dict(self.before)
        crops = [_crop(sample) for sample in self.samples]
        if not crops or any('key' not in crop for crop in crops):
            tensors |= _pixels(self.batch)
        try:
            with atomic_file(path.with_suffix('.pth')) as partial:
                save_tensors(tensors, partial)
            write_result(path, self._description(crops))
        except OSError as error:
            raise IgniteError(f'{path} cannot be written ({error.strerror or error}).') from error
        return path

    def _description(self, crops: list[dict]) -> dict:
        wrapper, config = self.runner.optim_wrapper, self.runner.cfg.filename
        precision = getattr(wrapper, 'dtype', None) or getattr(wrapper, 'cast_dtype', None) or torch.float32
        losses = {key: _number(value) for key, value in self.outputs.items() if isinstance(value, (Tensor, float))}
        return dict(
            format=FORMAT,
            iteration=self.iteration,
            learning_rate=_number(self.rate),
            precision=str(precision).removeprefix('torch.'),
            config=str(config) if config else None,
            losses=losses,
            crops=crops,
        )


def _number(value: Tensor | float) -> float | str:
    """Return a number for JSON, which has no NaN: 'nan', 'inf' and '-inf' are text."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _crop(sample: object) -> dict:
    """Describe a sample: its ROI and, of a crop stream, its key and position."""
    crop = dict(roi=sample.get('roi'), um_per_px=sample.get('um_per_px'), image=sample.get('img_path'))
    crop = {key: value if isinstance(value, (int, float)) else str(value) for key, value in crop.items() if value}
    if (key := sample.get('crop_key')) is not None:
        crop |= dict(key=key, position=sample.get('crop')._asdict())
    return crop


def _pixels(batch: object) -> dict[str, list[Tensor]]:
    """Return the images and labels of a batch of mmseg's form; empty for another form."""
    if not isinstance(batch, dict) or 'inputs' not in batch:
        return {}
    samples = batch.get('data_samples') or ()
    labels = [sample.gt_sem_seg.data.cpu() for sample in samples if 'gt_sem_seg' in sample]
    return dict(inputs=[image.cpu() for image in batch['inputs']], labels=labels)


def read_batch(path: str | Path) -> tuple[dict, dict]:
    """Read the two files of a step; code in the .pth file is never run.

    Returns:
        The content of the JSON file, and that of the .pth file: ``state_dict``, ``rng``, ``inputs``, ``labels``, if stored.

    Raises:
        IgniteError: one of them is missing, damaged, of another form, or of another version of this package.
    """
    path, expected = Path(path), 'nonfinite_batch_ITER.json of a training was expected'
    step = read_json(path, f'{expected}; check the path')
    if not isinstance(step, dict) or step.get('format') != FORMAT or not _is_step(step):
        raise IgniteError(f'{path} does not describe a batch of format {FORMAT}; {expected}: check the path.')
    file = path.with_suffix('.pth')
    tensors = read_tensors(file)
    if not _are_tensors(tensors):
        raise IgniteError(f'{file} does not hold the tensors of a batch: copy it from the work dir of the training.')
    return step, tensors


def _is_step(step: dict) -> bool:
    crops = step.get('crops')
    return (
        isinstance(crops, list)
        and all(isinstance(crop, dict) and _is_crop(crop) for crop in crops)
        and isinstance(step.get('losses'), dict)
        and isinstance(step.get('iteration'), int)
        and step.get('precision') in ('float32', 'bfloat16', 'float16')
    )


def _is_crop(crop: dict) -> bool:
    if not isinstance(crop.get('um_per_px', 0.5), (int, float)) or ('key' in crop) != ('position' in crop):
        return False
    if 'key' not in crop:
        return True
    key, position = crop['key'], crop['position']
    if not isinstance(key, list) or len(key) not in (2, 3) or not isinstance(position, dict):
        return False
    size = key[2] if len(key) == 3 else [1, 1]
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(isinstance(number, int) for number in [*key[:2], *size])
        and 0 <= key[1] < 2**64
        and min(size) > 0
        and size[0] * size[1] <= _MAX_CROP
        and position.keys() == set(CropPosition._fields)
        and position['train_id'] in range(-1, NUM_CLASSES)
    )


def _are_tensors(tensors: dict) -> bool:
    groups = [tensors.get(name, {}) for name in ('state_dict', 'rng')]
    lists = [tensors.get(name, []) for name in ('inputs', 'labels')]
    if not all(isinstance(group, dict) for group in groups) or not all(isinstance(found, list) for found in lists):
        return False
    values = [value for group in groups for value in group.values()] + [value for found in lists for value in found]
    return all(isinstance(value, Tensor) for value in values) and len(lists[0]) == len(lists[1])
