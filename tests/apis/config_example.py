"""A packaged config, read once per run: reading mmseg's bases takes most of the time of these tests."""

import copy
from functools import lru_cache

from conftest import CONFIGS
from mmengine.config import Config

from mmseg_ignite.apis.configuration import resolved
from mmseg_ignite.apis.options import apply_options

CONFIG = CONFIGS / 'segformer_mit-b0_1xb8-20k_ignite-512x512.py'


@lru_cache
def _read():
    return Config.fromfile(str(CONFIG))


def example(**settings):
    """Return a copy of the config with other top-level settings."""
    cfg = copy.deepcopy(_read())
    for key, value in settings.items():
        cfg[key] = value
    return cfg


def load(options):
    """Merge options and resolve the config, as load_config does."""
    cfg = example()
    apply_options(cfg, options)
    return resolved(cfg)
