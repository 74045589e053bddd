"""What both stacks need before a config is read or a checkpoint is opened. Applied once, when the package is imported."""

import torch
from mmengine.config.utils import MODULE2PACKAGE

from ..environment import stack_distribution
from .checkpoints import SAFE_GLOBALS


def apply() -> None:
    """Make ``mmseg::`` and ``mmseg_ignite::`` bases known, and let plain mmengine read checkpoints of its own runner.

    mmengine maps the module mmseg to the distribution 'mmsegmentation' alone, so that ``_base_ = ['mmseg::...']`` fails
    beside onedl-mmsegmentation. mmengine 0.10.7 cannot read the log history in its own checkpoints with torch 2.6 or
    newer; so its types, and nothing else, join torch's list of what ``weights_only=True`` accepts. How mmengine opens
    checkpoints stays as it is, see :func:`.checkpoints.safe_checkpoints`.
    """
    MODULE2PACKAGE['mmseg'] = stack_distribution('mmseg') or 'mmseg'
    MODULE2PACKAGE['mmseg_ignite'] = 'mmseg_ignite'
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
