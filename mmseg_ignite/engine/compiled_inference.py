"""torch.compile for predictions: encoder and decoder, for batches of one shape, and whether it pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ..errors import IgniteError
from ..models.segmentors.inference_settings import InferenceSettings
from ..models.segmentors.window_scores import preprocessed
from .optim_wrappers import autocast

BACKEND = 'inductor'
LEAST_GAIN = 0.05
"""Share of a batch's time that compiled networks are expected to save before it is measured."""
LEAST_SECONDS = 10.0
"""Compiling never takes less."""
LEAST_RATIO = 0.98
"""Compiled networks that take longer than this share of the time of eager ones are not used."""
FEWEST = 50
"""Batches; for fewer, not even the time of a batch is measured."""
_DIFFERENCE = 0.01
"""Largest relative difference, L2, of compiled logits in float32, TF32 included: between rounding and a fault."""
_HALF_DIFFERENCE = 0.1
_NEEDED = ('a C++ compiler, e.g. g++', 'Triton and a C compiler')
"""For a CPU, and for CUDA."""


def set_forwards(forwards: Mapping[nn.Module, Callable]) -> None:
    """Replace the forward passes of modules."""
    for module, forward in forwards.items():
        module.forward = forward


def unset_forwards(modules: Iterable[nn.Module]) -> None:
    """Restore the forward passes of modules, the methods of their classes."""
    for module in modules:
        vars(module).pop('forward', None)


class _OneShape:
    """A forward pass that is compiled for inputs of the shapes and types of its first call, and eager for others."""

    def __init__(self, eager: Callable) -> None:
        self.eager, self.kind = eager, None
        self.compiled = torch.compile(eager, backend=BACKEND, dynamic=False)

    def __call__(self, inputs: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        tensors = [inputs] if isinstance(inputs, Tensor) else inputs
        kind = [(x.shape, x.dtype) for x in tensors]
        self.kind = self.kind or kind
        if kind != self.kind:
            return self.eager(inputs)
        if isinstance(inputs, Tensor):  # turned windows have other strides, for which it would be compiled again
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.compiled(inputs)


class Compilation:
    """Compiled encoders and decoders of a segmentor, or the decision against them.

    They are compiled for full batches of windows, so they are compiled once. The last batch of an image, images smaller than
    a window, and turned copies of oblong windows are eager: filled up to a full batch, they would take longer than they do
    now. Results differ by rounding only.

    Args:
        model: segmentor with the ``test_cfg`` of a TissueSegmentor, in evaluation and on its device; of an ensemble, each
            network is compiled.
        dtype: of autocast; float32 means without it.
        wanted: True or False, or None: :meth:`decide` may compile.
        report: called with a line of text about each decision.

    Attributes:
        active: whether compiled networks are in use.
        reason: why they are or are not, in words.
        seconds: times that were measured: 'compiling', and of a full batch 'eager' and 'compiled'.
        further: number of inputs still to come, each assumed to be like the present one.

    Example:
        >>> compilation = Compilation(model.eval(), report=print)
        >>> with torch.inference_mode():
        ...     compilation.decide(windows=12_000)
    """

    def __init__(
        self,
        model: EncoderDecoder,
        dtype: torch.dtype = torch.float32,
        wanted: bool | None = None,
        report: Callable[[str], object] = print,
    ) -> None:
        self.model, self.dtype, self.wanted, self.report = model, dtype, wanted, report
        self.active, self.further, self.seconds = False, 0, {}
        self.reason = 'not asked for' if wanted is False else ''
        self._networks = getattr(model, 'members', [model])
        self._decided, self._said, self._least = wanted is not None, False, 0.0

    def record(self) -> dict:
        """Return ``active``, ``reason`` and ``seconds``, for the record of a run."""
        seconds = {name: round(value, 4) for name, value in self.seconds.items()}
        return dict(active=self.active, reason=self.reason, seconds=seconds)

    def compile(self) -> None:
        """Compile now. Call it in the grad mode of the predictions: inference mode, or without gradients.

        Raises:
            IgniteError: whole images are predicted, which have many sizes; or the networks cannot be compiled, e.g. without
                a C++ compiler or Triton, or their logits differ from the eager ones by more than rounding.
        """
        if not self._is_tiled():
            raise IgniteError(
                'only networks for windows, which have one size, are compiled, but model.test_cfg.mode is not "slide": leave '
                '--compile out, or set model.test_cfg.mode=slide, crop_size and stride.'
            )
        batch = self._batch()
        expected = self._logits(batch)
        self._compile('decode_head', batch)
        self._compile('backbone', batch)
        self._check(batch, expected)
        self.active, self.reason, self._decided = True, 'asked for', True

    def decide(self, windows: int) -> None:
        """Compile if it pays for an input with this number of windows and the ``further`` ones, unless this is decided.

        The time of an eager batch is measured. The decoder is compiled first, which shows how long the encoder will take, so
        that hardly more time can be lost than the share of the run, :data:`LEAST_GAIN`, that was to be saved. Networks that
        cannot be compiled, or are no faster then, stay eager. Call it in the grad mode of the predictions.
        """
        if self._decided or not self._is_tiled():
            return
        batches = windows * (1 + self.further) / self._tiling()['window_batch']
        if batches < FEWEST:
            self.reason = f'too few windows: {windows * (1 + self.further):,}'
            return
        batch = self._batch()
        if 'eager' not in self.seconds:
            self.seconds['eager'] = self._timed(batch)
        settings = self._settings()
        left = batches * self.seconds['eager'] * settings.symmetries / settings.flips_at_once(batch.device)
        saved, self._least = LEAST_GAIN * left, max(LEAST_SECONDS, self._least)
        promise = f'it may save about {saved:.0f} s of {left:.0f} s, and takes {{}} {{:.0f}} s'
        if saved < self._least:
            self._stay_eager(promise.format('more than', self._least), final=False)
            return
        try:
            expected = self._logits(batch)
            self._compile('decode_head', batch)
            self._least = self.seconds['compiling'] * (1 + _kinds(self.model.backbone) / _kinds(self.model.decode_head))
            if saved < self._least:
                self._stay_eager(promise.format('about', self._least), final=False)
                return
            self._compile('backbone', batch)
            self._check(batch, expected)
        except IgniteError as error:
            self._stay_eager(str(error).rpartition(': ')[0])
            return
        self._compare(batch)

    def _compare(self, batch: Tensor) -> None:
        """Keep the compiled networks if they are faster."""
        self.seconds['compiled'] = self._timed(batch)
        times = f'a batch takes {self.seconds["compiled"]:.3g} s instead of {self.seconds["eager"]:.3g} s'
        if self.seconds['compiled'] > LEAST_RATIO * self.seconds['eager']:
            self._stay_eager(times)
            return
        self.active, self.reason, self._decided = True, times, True
        self.report(f'compilation: on after {self.seconds["compiling"]:.0f} s; {times} (--no-compile switches it off)')

    def _stay_eager(self, reason: str, final: bool = True) -> None:
        self._restore()
        if final or not self._said:  # not a line for each small slide
            self.report(f'compilation: off; {reason} (--compile switches it on)')
        self.reason, self._decided, self._said = reason, final, True

    def _is_tiled(self) -> bool:
        return (self.model.test_cfg or {}).get('mode') == 'slide'

    def _settings(self) -> InferenceSettings:
        return InferenceSettings.of(self.model.test_cfg, self.model.out_channels)

    def _tiling(self) -> dict:
        return self._settings().tiling(next(self.model.parameters()).device)

    def _batch(self) -> Tensor:
        """Return a full batch of windows of noise, with flipped copies, as the networks get it: (B, 3, h, w) float."""
        device, tiling = next(self.model.parameters()).device, self._tiling()
        number = tiling['window_batch'] * self._settings().flips_at_once(device)
        noise = np.random.default_rng(0).integers(0, 256, (number, *tiling['crop_size'], 3), np.uint8)
        return preprocessed(self.model, noise, device)

    def _logits(self, batch: Tensor) -> list[Tensor]:
        """Return the logits of each network, before they are resized."""
        with autocast(batch.device, self.dtype):
            return [network.decode_head(network.extract_feat(batch)) for network in self._networks]

    def _timed(self, batch: Tensor) -> float:
        """Return the seconds of a batch, the shortest of three after one that is not counted."""
        found = []
        for _ in range(4):
            _wait(batch.device)
            start = time.perf_counter()
            self._logits(batch)
            _wait(batch.device)
            found.append(time.perf_counter() - start)
        return min(found[1:])

    def _compile(self, part: str, batch: Tensor) -> None:
        """Compile the encoders or the decoders by a first batch; add the time to ``seconds``."""
        start, forwards = time.perf_counter(), {}
        for network in self._networks:
            module = getattr(network, part)
            forwards[module] = _OneShape(module.forward)
        try:
            set_forwards(forwards)
            self._logits(batch)
            _wait(batch.device)
        except Exception as error:  # of Dynamo, Inductor, a compiler, Triton, ...
            self._restore()
            raise IgniteError(
                f'the networks cannot be compiled ({_in_short(error)}): install {_NEEDED[batch.device.type == "cuda"]} if '
                'it is missing, or leave --compile out.'
            ) from error
        self.seconds['compiling'] = self.seconds.get('compiling', 0.0) + time.perf_counter() - start

    def _check(self, batch: Tensor, expected: list[Tensor]) -> None:
        """Restore the eager networks and raise IgniteError if logits of the compiled ones differ by more than rounding."""
        limit = _DIFFERENCE if self.dtype == torch.float32 else _HALF_DIFFERENCE
        for eager, compiled in zip(expected, self._logits(batch)):
            difference = ((compiled.float() - eager.float()).norm() / eager.float().norm()).item()
            if not difference <= limit:
                self._restore()
                raise IgniteError(
                    f'the logits of the compiled networks differ from the eager ones by {difference:.2g} of their size; less '
                    f'than {limit} was expected: leave --compile out.'
                )

    def _restore(self) -> None:
        """Restore the eager networks."""
        unset_forwards(getattr(network, part) for network in self._networks for part in ('backbone', 'decode_head'))


def _kinds(module: nn.Module) -> int:
    """Return the number of different layers, each of which is about a kernel to compile."""
    leaves = [part for part in module.modules() if next(part.children(), None) is None]
    return len({(type(part), *(tuple(p.shape) for p in part.parameters())) for part in leaves})


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _in_short(error: Exception) -> str:
    """Return the first line of the cause of an error, or of the error."""
    cause = error
    while (inner := getattr(cause, 'inner_exception', None) or cause.__cause__) is not None:
        cause = inner
    lines = [line for line in str(cause).splitlines() if line.strip()] or ['no further details']
    return f'{type(cause).__name__}: {lines[0].strip()[:200]}'
