"""A segmentor whose network is an ONNX graph, run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...errors import IgniteError
from ...files import printable
from ..data_preprocessor import TissueDataPreProcessor
from ..onnx_file import OnnxFile, reason
from .tissue_segmentor import TissueSegmentor


@MODELS.register_module()
class OnnxSegmentor(TissueSegmentor):
    """A TissueSegmentor without weights of its own, whose logits come from a file that ``tools/export.py`` has written.

    Windows, symmetries and maps work as with a checkpoint. Images are prepared as the file's metadata state. Probabilities
    are averaged by their logarithm, as those of a TissueEnsemble.

    Args:
        path: the .onnx file.
        device: 'cpu' or a CUDA device. Defaults to 'cpu'.
        test_cfg: see :class:`TissueSegmentor`.

    Attributes:
        file: the :class:`OnnxFile <mmseg_ignite.models.onnx_file.OnnxFile>`.
        session: the ``onnxruntime.InferenceSession``; its threads are torch's at the time it was built.

    Raises:
        IgniteError: the file cannot be used, see :class:`OnnxFile <mmseg_ignite.models.onnx_file.OnnxFile>`, or has labels
            as output, which cannot be averaged; or it is trained.

    Example:
        >>> model = OnnxSegmentor('b0.onnx', test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(384, 384))).eval()
        >>> labels = model.label_image(np.load('slide.npy', mmap_mode='r'))
    """

    def __init__(self, path: str | Path, device: str = 'cpu', test_cfg: dict | None = None) -> None:
        file = OnnxFile.read(path)
        if file.outputs == 'labels':
            raise IgniteError(
                f'{printable(path)} returns labels, which cannot be averaged over windows; logits or probabilities were '
                'expected: export the checkpoint with --output logits.'
            )
        normalised = dict(mean=file.mean, std=file.std) if file.inputs == 'normalised' else {}
        is_rgb = file.inputs != 'normalised' or file.channel_order == 'RGB'
        BaseSegmentor.__init__(self, TissueDataPreProcessor(bgr_to_rgb=is_rgb, **normalised))
        self.out_channels = self.num_classes = len(file.classes)
        self.align_corners, self.train_cfg, self.test_cfg = False, None, test_cfg
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # without values; it is where the inputs go
        self.session = file.session(torch.device(device))
        self.file = replace(file, content=b'')  # the session has its own copy
        self.test_settings()

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return the logits, or the logarithm of the probabilities, (N, C, H, W) float32, of prepared images (N, 3, H, W)."""
        x = inputs.float()
        if self.file.inputs in ('nchw', 'nhwc'):
            x = x.to(torch.uint8)
        x = (x.permute(0, 2, 3, 1) if self.file.inputs == 'nhwc' else x).contiguous()
        scores = inputs.new_empty((len(inputs), self.out_channels, *inputs.shape[2:]), dtype=torch.float32)
        self._run(x, scores)
        if self.file.outputs == 'logits':
            return scores
        return scores.clamp_min_(torch.finfo(scores.dtype).tiny).log_()

    def _run(self, x: Tensor, scores: Tensor) -> None:
        """Run the graph on the memory of torch's tensors, without copies."""
        binding, session = self.session.io_binding(), self.session
        kinds = (
            (binding.bind_input, session.get_inputs()[0], x),
            (binding.bind_output, session.get_outputs()[0], scores),
        )
        for bind, port, tensor in kinds:
            kind = np.uint8 if tensor.dtype == torch.uint8 else np.float32
            bind(port.name, tensor.device.type, tensor.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr())
        if x.device.type == 'cuda':
            torch.cuda.current_stream(x.device).synchronize()  # ONNX Runtime has a stream of its own
        try:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # types of ONNX Runtime's own, without a common base
            raise IgniteError(
                f'{printable(self.file.path)} cannot be applied to {len(x)} images of {scores.shape[2]} x '
                f'{scores.shape[3]} px ({reason(error)}): export the checkpoint again, or use a smaller --window-batch.'
            ) from error

    def extract_feat(self, inputs: Tensor) -> None:
        raise IgniteError(
            f'{printable(self.file.path)} is one graph, from which the maps of the encoder cannot be taken.'
        )

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        return self.encode_decode(inputs, [])

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict:
        raise IgniteError(
            f'{printable(self.file.path)} cannot be trained: train the checkpoint that it was written from, and export again.'
        )
