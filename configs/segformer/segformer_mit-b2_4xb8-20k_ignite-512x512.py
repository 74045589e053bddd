# Like 1xb8-20k on four GPUs with --amp: four times the crops per step, learning rate scaled by sqrt(4), the usual rule for
# Adam. torchrun --nproc_per_node=4 tools/train.py THIS --launcher pytorch --amp
_base_ = ['./segformer_mit-b2_1xb8-20k_ignite-512x512.py']

optim_wrapper = dict(optimizer=dict(lr=1.2e-4))
