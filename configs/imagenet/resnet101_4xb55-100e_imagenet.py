# The LCT paper's: fewer images a step for want of memory, at the same learning rate.
_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(depth=101))
train_dataloader = dict(batch_size=55)
auto_scale_lr = dict(base_batch_size=220)
