"""The ImageNet-1k weights of MiT-B0..B5: fetched with a checksum, or taken from a file, or left out."""

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch
from mmengine.config import Config

from ..engine.checkpoints import open_checkpoint
from ..errors import IgniteError


def _check_hash(path: Path) -> None:
    """The last eight hex digits of an OpenMMLab name are the head of the file's SHA-256."""
    expected = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if expected and (found := hashlib.sha256(path.read_bytes()).hexdigest()[:8]) != expected[1]:
        raise IgniteError(
            f'{path} has the SHA-256 {found}..., its name promises {expected[1]}...: delete it and fetch '
            'it again, or rename it if it holds other weights.'
        )


def fetch(url: str) -> Path:
    """Download weights to torch's cache (once), check them, and return the file.

    Raises:
        IgniteError: no network, or a wrong checksum.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), re.search(r'-([0-9a-f]{8})\.pth$', url)[1])
        except (URLError, OSError, RuntimeError) as error:
            raise IgniteError(
                f'{url} cannot be fetched ({error}): give the file with --weights FILE, or train from '
                'random weights with --weights none.'
            ) from error
    _check_hash(path)
    return path


def set_encoder_weights(cfg: Config, choice: 'str | None') -> None:
    """Decide where the encoder of a config starts, and check it before anything is built.

    Args:
        cfg: changed in place (``model.backbone.init_cfg``).
        choice: None keeps the config's own; 'none' is random weights; else a file in mmseg's format.

    Raises:
        IgniteError: the file is missing, damaged or not of this encoder's form.
    """
    backbone = cfg.model.backbone
    if choice == 'none':
        backbone.init_cfg = None
    elif choice is not None:
        backbone.init_cfg = dict(type='Pretrained', checkpoint=choice)
    source = (backbone.get('init_cfg') or {}).get('checkpoint')
    if source is None:
        return
    path = fetch(source) if str(source).startswith(('http://', 'https://')) else Path(source)
    content = open_checkpoint(path)
    _check_hash(path)
    _check_encoder(content.get('state_dict', content), cfg, path)
    backbone.init_cfg.checkpoint = str(path)


def _check_encoder(weights: dict, cfg: Config, path: Path) -> None:
    from mmseg.registry import MODELS

    own = MODELS.build({**cfg.model.backbone, 'init_cfg': None}).state_dict()
    weights = {k.removeprefix('backbone.'): v for k, v in weights.items()}
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    if wrong:
        raise IgniteError(
            f'{path} holds no weights for this {cfg.model.backbone.type} ({len(wrong)} of {len(own)} are '
            f'missing or of another shape, e.g. {wrong[0]}): take the file of the same MiT size.'
        )
