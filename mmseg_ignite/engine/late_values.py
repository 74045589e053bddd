"""Numbers of an accelerator that are read when somebody needs them, so that the device never waits for the host."""

import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

MAX_WAITING = 4096
"""Numbers of a :class:`LateMessageHub` that are kept on the device at most."""


class LateFlag:
    """A boolean of the device, copied to the host behind the work that computes it.

    Args:
        value: bool, of one element.
    """

    def __init__(self, value: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._value = value.detach()
        if value.is_cuda:
            self._value = self._value.to('cpu', non_blocking=True)  # into pinned memory
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        """Return the value; wait for the work before the copy, not for what was queued after it."""
        if self._copied is not None:
            self._copied.synchronize()
        value = self._value
        return bool(value.numpy()) if value.device.type == 'cpu' else bool(value)


class LateMessageHub(MessageHub):
    """mmengine's MessageHub that copies logged tensors to the host at once, when the log history is read.

    mmengine reads every loss in every iteration, and each time an accelerator runs idle. Here a logged tensor stays where it
    is until somebody asks for its history: the logger at its interval, a checkpoint, a validation, any other hook. Then all
    that wait are copied as one tensor. Whoever reads finds the values, counts and order of mmengine's hub.
    """

    def __init__(self, name: str, *args: object, **kwargs: object) -> None:
        super().__init__(name, *args, **kwargs)
        self._waiting: list[tuple[str, Tensor, int, bool]] = []
        self._waiting_keys: set[str] = set()

    def update_scalar(self, key: str, value: object, count: int = 1, resumed: bool = True) -> None:
        """Add a number to a history; a tensor of one element is copied on the device and read later."""
        if isinstance(value, Tensor) and value.numel() == 1:
            self._waiting.append((key, value.detach().reshape(()).clone(), count, resumed))
            self._waiting_keys.add(key)
            # A new history starts at once, so that the histories have the order of mmengine's.
            if key not in super().log_scalars or len(self._waiting) >= MAX_WAITING:
                self.read()
            return
        if key in self._waiting_keys:
            self.read()
        super().update_scalar(key, value, count, resumed)

    def read(self) -> None:
        """Copy the tensors that wait to the host, in one copy for each type and device, and add them to their histories."""
        waiting, self._waiting = self._waiting, []
        self._waiting_keys.clear()
        groups: dict[tuple, list[int]] = {}
        for number, (_, value, _, _) in enumerate(waiting):
            groups.setdefault((value.dtype, value.device), []).append(number)
        numbers: dict[int, float] = {}
        for members in groups.values():
            numbers.update(zip(members, torch.stack([waiting[number][1] for number in members]).tolist()))
        for number, (key, _, count, resumed) in enumerate(waiting):
            super().update_scalar(key, numbers[number], count, resumed)

    @property
    def log_scalars(self) -> dict[str, HistoryBuffer]:
        """All histories by name."""
        if self._waiting:
            self.read()
        return super().log_scalars

    def get_scalar(self, key: str) -> HistoryBuffer:
        """Return the history of a name; KeyError if there is none."""
        if key in self._waiting_keys:
            self.read()
        known = super().log_scalars  # without reading the others
        return known[key] if key in known else super().get_scalar(key)

    def state_dict(self) -> dict:
        """See :meth:`mmengine.logging.MessageHub.state_dict`."""
        self.read()
        return super().state_dict()

    def load_state_dict(self, state_dict: object) -> None:
        """See :meth:`mmengine.logging.MessageHub.load_state_dict`."""
        self.read()
        super().load_state_dict(state_dict)
