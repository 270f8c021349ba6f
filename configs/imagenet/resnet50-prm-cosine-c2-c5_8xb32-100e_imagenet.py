_base_ = 'resnet50_8xb32-100e_imagenet.py'
block = dict(type='prm_mmdet.PRM', similarity='cosine')
plugin = dict(cfg=block, position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
