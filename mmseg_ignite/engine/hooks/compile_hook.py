"""torch.compile for the forward passes of the network."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from ..compiled_inference import set_forwards, unset_forwards

MODES = ('default', 'max-autotune-no-cudagraphs')
"""Modes of :func:`torch.compile` that record no CUDA graphs."""


@HOOKS.register_module()
class CompileHook(Hook):
    """Train with compiled forward passes of a segmentor's parts.

    mmengine's ``compile=True`` compiles the whole training step including the optimizer, which fails. Validations, with
    images of many sizes, are not compiled. Checkpoints do not differ from those of other trainings.

    CUDA graphs are not supported: a graph writes its results where it wrote those of the step before, but statistics of
    batch normalisation, losses that are logged later and accumulated gradients outlive a step.

    Args:
        parts (Sequence[str]): modules of the segmentor. Defaults to ('backbone', 'decode_head').
        mode (str): 'default' or 'max-autotune-no-cudagraphs', which compiles longer. Defaults to 'default'.
        options: other arguments of :func:`torch.compile`.

    Raises:
        IgniteError: the mode or ``options`` would record CUDA graphs.
    """

    def __init__(
        self, parts: Sequence[str] = ('backbone', 'decode_head'), mode: str | None = 'default', **options: object
    ) -> None:
        graphs = (options.get('options') or {}).get('triton.cudagraphs')
        if mode not in (*MODES, None) or graphs:
            raise IgniteError(
                f'CompileHook has {"options with triton.cudagraphs" if graphs else f"mode={mode!r}"}, but CUDA graphs over '
                f'buffers that change give wrong results; {" or ".join(MODES)} was expected: correct the mode.'
            )
        default = mode == 'default' and options.get('options')  # torch.compile accepts either a mode or options
        self.parts, self.options = parts, dict(options, mode=None if default else mode)
        self._compiled: dict = {}

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        modules = [getattr(model, name) for name in self.parts]
        self._compiled = {module: torch.compile(module.forward, **self.options) for module in modules}
        set_forwards(self._compiled)

    def before_val_epoch(self, runner: Runner) -> None:
        unset_forwards(self._compiled)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        set_forwards(self._compiled)

    def after_train(self, runner: Runner) -> None:
        unset_forwards(self._compiled)
        self._compiled = {}
