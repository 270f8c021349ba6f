# The 1.x protocol of the paper; '../_base_/v3/...' gives MMDetection 3's defaults.
_base_ = ['../_base_/v1/faster-rcnn_r50_fpn.py', '../_base_/schedules/4xb1-1x.py']
init_cfg = dict(checkpoint='torchvision://resnet101')
model = dict(backbone=dict(depth=101, init_cfg=init_cfg))
train_dataloader = dict(batch_size=1)
