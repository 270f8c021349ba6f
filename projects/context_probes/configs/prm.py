_base_ = 'none.py'
block = dict(type='prm_mmdet.PRM', groups=16)  # as many channels a group as the paper
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
