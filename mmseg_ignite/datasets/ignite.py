"""IGNITE as a data set of mmseg."""

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..labels import CLASSES, IGNORE, PALETTE
from ..preparation.store import image_path, label_path, read_index, select


@DATASETS.register_module()
class IGNITEDataset(BaseSegDataset):
    """ROIs of a prepared IGNITE data set (see ``tools/prepare_ignite.py``).

    Labels are train ids 0..15; 255 marks unannotated pixels. Load them with :class:`LoadIGNITERegion`; every
    transform of mmseg may follow it. Each sample also carries ``roi`` (the name), ``patient`` and ``um_per_px``.

    Args:
        data_root (str): The prepared folder, the one with ``index.json``.
        split (str): 'train', 'val' or 'test'.
        protocol (str): Which division of the ROIs: 'patient-8-1-1' (grouped by patient) or 'official' (the release's
            own test ROIs). Defaults to 'patient-8-1-1'.
        kwargs: Those of :class:`mmseg.datasets.BaseSegDataset`, e.g. ``pipeline``, ``metainfo`` (fewer classes),
            ``indices``, ``test_mode``.

    Raises:
        IgniteError: no prepared data set at ``data_root``, an unknown protocol or split, or a leaking split.
    """

    METAINFO = dict(classes=CLASSES, palette=[list(colour) for colour in PALETTE])

    def __init__(self, data_root: str, split: str, protocol: str = 'patient-8-1-1', **kwargs) -> None:
        self.split, self.protocol = split, protocol
        super().__init__(
            data_root=data_root,
            ignore_index=IGNORE,
            reduce_zero_label=False,
            img_suffix='.npy',
            seg_map_suffix='.npy',
            **kwargs,
        )

    def load_data_list(self) -> 'list[dict]':
        """One dictionary an ROI, from the index."""
        rois = select(read_index(self.data_root), self.protocol, self.split, self.data_root)
        return [
            dict(
                img_path=str(image_path(self.data_root, r['name'])),
                seg_map_path=str(label_path(self.data_root, r['name'])),
                roi=r['name'],
                patient=r['patient'],
                um_per_px=r['um_per_px'],
                label_map=self.label_map,
                reduce_zero_label=False,
                seg_fields=[],
            )
            for r in rois
        ]
