_base_ = 'none.py'
block = dict(type='prm_mmdet.SAC', reduction=8)  # as many contexts as in the paper
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv2')
model = dict(backbone=dict(plugins=[plugin]))
