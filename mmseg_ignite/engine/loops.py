"""mmengine's training loop by iterations, with exact resuming."""

from collections.abc import Iterator, Sequence

from mmengine.dist import broadcast, get_world_size
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import LOOPS
from torch.utils.data import DataLoader

from .compatibility import accumulation_steps
from .interruption import stop_request
from .worker_errors import worker_errors


class Batches:
    """The endless batches of a loader, as an iterator whose start can be set."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.epoch = loader, 0
        self._iterator: Iterator | None = None

    def start(self, iterations: int) -> None:
        """Start the loader behind the batches of so many iterations: at once if its sampler can skip, else by reading."""
        sampler, size = self.loader.sampler, self.loader.batch_size
        skips = hasattr(sampler, 'skip') and size is not None
        if iterations and skips:
            sampler.skip(iterations * size)
        self._iterator = iter(self.loader)
        for _ in range(0 if skips else iterations):
            next(self)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Sequence[dict]:
        if self._iterator is None:
            self.start(0)
        try:
            return next(self._iterator)
        except StopIteration:
            self.epoch += 1
            if hasattr(self.loader.sampler, 'set_epoch'):
                self.loader.sampler.set_epoch(self.epoch)
            self._iterator = iter(self.loader)
            return next(self._iterator)


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop that continues a stopped run exactly; arguments are the same.

    - The random number generators are set after the loader was started, so the next iteration draws what it would have drawn.
    - A validation that a kill prevented is made up before the next iteration.
    - A signal (see :class:`.interruption.StopRequest`) ends the run between two iterations, after it was saved.

    :class:`TissueRunner <mmseg_ignite.engine.runner.TissueRunner>` uses it in place of IterBasedTrainLoop.
    """

    def __init__(self, runner: object, dataloader: DataLoader | dict, *args: object, **kwargs: object) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader_iterator = Batches(self.dataloader)

    def validation_due(self, iteration: int) -> bool:
        """Return whether a validation follows after so many iterations."""
        if self.runner.val_loop is None or iteration < self.val_begin or iteration == 0:
            return False
        return iteration % self.val_interval == 0 or iteration == self.max_iters

    def run(self) -> object:
        """Train; return the model."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self.dataloader_iterator.start(self._iter)
        with worker_errors.late():
            self._train()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _train(self) -> None:
        runner, resumed = self.runner, getattr(self.runner, 'resumed', None)
        if resumed is not None:
            resumed.restore_random_state()
            if resumed.validation_pending and runner.val_loop is not None:
                self._validate()
        while self._iter < self._max_iters and not self.stop_training:
            self._stop_if_requested()
            runner.model.train()
            self.run_iter(self._next_batch())
            self._decide_current_val_interval()
            if self.validation_due(self._iter):
                self._validate()

    def _next_batch(self) -> Sequence[dict]:
        """Return the next batch. A signal to the process group ends the workers too: then save what is complete and stop."""
        try:
            with worker_errors.at_once():
                return next(self.dataloader_iterator)
        except (RuntimeError, OSError, EOFError):
            self._stop_if_requested()
            raise

    def _validate(self) -> None:
        """Score the model that checkpoints have: the first process's, as statistics of an unsynchronised BN differ."""
        for buffer in self.runner.model.buffers() if get_world_size() > 1 else ():
            broadcast(buffer, src=0)
        with worker_errors.at_once():
            self.runner.val_loop.run()

    def _stop_if_requested(self) -> None:
        if stop_request.due(self._iter, accumulation_steps(self.runner.optim_wrapper)):
            self.runner.stop()
