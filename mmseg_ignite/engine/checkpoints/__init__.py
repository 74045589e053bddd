"""Checkpoints: opening them safely, and loading them into models."""

from .opening import SAFE_GLOBALS, load_weights, open_checkpoint, safe_checkpoints

__all__ = ['SAFE_GLOBALS', 'load_weights', 'open_checkpoint', 'safe_checkpoints']
