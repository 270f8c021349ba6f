_base_ = 'none.py'
# With 16 groups, a group has as many channels as in the paper's networks.
block = dict(type='prm_mmdet.PRM', groups=16)
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
