_base_ = 'retinanet_r50_fpn_4xb2-1x_coco.py'
init_cfg = dict(checkpoint='torchvision://resnet101')
model = dict(backbone=dict(depth=101, init_cfg=init_cfg))
