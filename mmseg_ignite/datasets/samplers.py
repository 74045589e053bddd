"""The order in which a training asks for crops."""

from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class CropStreamSampler(Sampler):
    """Ask :class:`IGNITECropDataset` for crop 0, 1, 2, ... of a seed, without end.

    Each of W processes takes every W-th number, so that they see together what one process with a batch W times as
    large sees. A resumed run skips to its place at no cost, as with mmengine's InfiniteSampler.

    Args:
        dataset (Sized): The data set.
        seed (int, optional): Of the stream; mmengine passes the run's own. Defaults to None: a random one.

    Attributes:
        sizes: [(first n, (H, W)), ...] in order of n: crops from that number on have this size in px; before the first, and
            by default, that of the data set. Set by :class:`CropGrowthHook <mmseg_ignite.engine.hooks.CropGrowthHook>`.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.skipped = 0
        self.sizes: list[tuple[int, tuple[int, int]]] = []

    def __iter__(self) -> Iterator[tuple]:
        """(seed, n) of this process's crops, for ever; (seed, n, (H, W)) where ``sizes`` gives a size."""
        n = self.skipped * self.world_size + self.rank
        while True:
            size = next((size for first, size in reversed(self.sizes) if first <= n), None)
            yield (self.seed, n) if size is None else (self.seed, n, size)
            n += self.world_size

    def skip(self, num_samples: int) -> None:
        """Begin after the first ``num_samples`` crops of this process, counted from the start of the stream."""
        if num_samples < 0:
            raise ValueError(f'num_samples must not be negative, got {num_samples}')
        self.skipped = num_samples

    def __len__(self) -> int:
        """Number of ROIs; mmengine logs it."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """The stream knows no epochs."""
