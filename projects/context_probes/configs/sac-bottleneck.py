_base_ = 'none.py'
block = dict(type='prm_mmdet.SAC', reduction=8, transform='bottleneck')
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
