"""Checkpoints: opening them safely, loading them into models, writing them so that none is lost, exact resuming."""

from .opening import DamagedCheckpoint, load_weights, open_checkpoint, safe_checkpoints
from .safetensors_files import write_safetensors

__all__ = ['DamagedCheckpoint', 'load_weights', 'open_checkpoint', 'safe_checkpoints', 'write_safetensors']
