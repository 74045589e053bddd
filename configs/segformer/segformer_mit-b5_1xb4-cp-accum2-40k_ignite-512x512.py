# Like 1xb4-accum2-40k, for GPUs with 4 GB, with --amp: blocks are computed again in the backward pass instead of being kept.
_base_ = ['./segformer_mit-b5_1xb4-accum2-40k_ignite-512x512.py']

model = dict(backbone=dict(with_cp=True))
