# The LCT paper reduces the batch to 220 images "due to the limited GPU memory", and
# names no other learning rate for it.
_base_ = 'resnet50_4xb64-100e_imagenet.py'
model = dict(backbone=dict(depth=101))
train_dataloader = dict(batch_size=55)
auto_scale_lr = dict(base_batch_size=220)
