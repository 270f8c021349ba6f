_base_ = 'none.py'
# With this number, a group has as many channels as in the paper.
block = dict(type='prm_mmdet.LCT', groups=16)
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
