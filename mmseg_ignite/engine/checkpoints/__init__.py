"""Checkpoints: opening them safely, loading them into models, writing them so that none is lost, exact resuming."""

from .opening import DamagedCheckpoint, check_no_graph, load_weights, open_checkpoint, safe_checkpoints

__all__ = ['DamagedCheckpoint', 'check_no_graph', 'load_weights', 'open_checkpoint', 'safe_checkpoints']
