_base_ = 'resnet18-prm-c2-c5_8xb32-100e_imagenet.py'
block = dict(type='prm_mmdet.PRM', normalization=False)
plugin = dict(cfg=block, at=r'layer[1-4]\.\d+\.bn2')
model = dict(backbone=dict(plugins=[plugin]))
