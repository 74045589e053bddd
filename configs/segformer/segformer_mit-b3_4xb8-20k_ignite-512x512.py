# As 1xb8-20k on four GPUs: four times the crops a step, at twice the learning rate, as Adam's noise has it. With --amp.
# torchrun --nproc_per_node=4 tools/train.py THIS --launcher pytorch --amp
_base_ = ['./segformer_mit-b3_1xb8-20k_ignite-512x512.py']

optim_wrapper = dict(optimizer=dict(lr=1.2e-4))
