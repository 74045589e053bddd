"""The order in which training requests crops."""

from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class CropStreamSampler(Sampler):
    """Request crops 0, 1, 2, ... of a seed from :class:`IGNITECropDataset`, endlessly.

    Each of W processes takes every W-th number, so together they see the same crops as one process with a batch W times as
    large. A resumed run skips ahead at no cost, as with mmengine's InfiniteSampler.

    Args:
        dataset: the data set.
        seed: seed of the stream; mmengine passes the run's seed. None: a random one.

    Attributes:
        sizes: [(first n, (H, W)), ...] in order of n: crops from that number on have this size in px; earlier ones, and all
            by default, have the data set's size. Set by :class:`CropGrowthHook <mmseg_ignite.engine.hooks.CropGrowthHook>`.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.dataset, self.skipped = dataset, 0
        self.sizes: list[tuple[int, tuple[int, int]]] = []

    def __iter__(self) -> Iterator[tuple]:
        """Yield (seed, n) of this process's crops endlessly, or (seed, n, (H, W)) where ``sizes`` sets a size."""
        n = self.skipped * self.world_size + self.rank
        while True:
            size = next((size for first, size in reversed(self.sizes) if first <= n), None)
            yield (self.seed, n) if size is None else (self.seed, n, size)
            n += self.world_size

    def skip(self, num_samples: int) -> None:
        """Skip the first ``num_samples`` crops of this process, counted from the start of the stream."""
        if num_samples < 0:
            raise ValueError(f'num_samples must not be negative, got {num_samples}')
        self.skipped = num_samples

    def __len__(self) -> int:
        """Return the number of ROIs, which mmengine logs."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""
