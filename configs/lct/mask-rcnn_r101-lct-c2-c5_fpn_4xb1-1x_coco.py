_base_ = 'mask-rcnn_r101_fpn_4xb1-1x_coco.py'
block = dict(type='prm_mmdet.LCT')
plugin = dict(cfg=block, stages=(True, True, True, True), position='after_conv3')
# c2 is frozen, so the weights of the blocks in c2 must come from pre-training.
init_cfg = dict(checkpoint='checkpoints/resnet101-lct_imagenet.pth', prefix='backbone.')
model = dict(backbone=dict(plugins=[plugin], init_cfg=init_cfg))
