# The LCT paper's schedule: 4 GPUs x 1 image.
_base_ = '4xb2-1x.py'
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)
