"""What both stacks need before a config is read or a checkpoint opened. Applied once, on import."""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader

from ..environment import stack_distribution
from .checkpoints import open_checkpoint


def apply() -> None:
    """Let ``mmseg::`` and ``mmseg_ignite::`` bases be found, and open local checkpoints safely.

    mmengine maps the module mmseg to the distribution 'mmsegmentation' alone, so that
    ``_base_ = ['mmseg::...']`` fails beside onedl-mmsegmentation. Its loader of local files either refuses its own
    checkpoints (0.10.7 with torch >= 2.6, on resume) or falls back to unpickling whatever the file holds.
    """
    MODULE2PACKAGE['mmseg'] = stack_distribution('mmseg')
    MODULE2PACKAGE['mmseg_ignite'] = 'mmseg_ignite'
    CheckpointLoader.register_scheme(
        '', lambda filename, map_location=None: open_checkpoint(filename, map_location), force=True
    )
