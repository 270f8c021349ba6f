# MMDetection 1.x's settings, as when the paper was written. For MMDetection 3's
# defaults, replace v1 by v3.
_base_ = ['../_base_/v1/mask-rcnn_r50_fpn.py', '../_base_/schedules/4xb1-1x.py']
init_cfg = dict(checkpoint='torchvision://resnet101')
model = dict(backbone=dict(depth=101, init_cfg=init_cfg))
train_dataloader = dict(batch_size=1)
