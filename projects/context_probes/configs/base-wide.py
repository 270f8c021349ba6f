# Convolutions are given the parameters of the largest block, NonLocal2d.
_base_ = 'base.py'
model = dict(backbone=dict(base_channels=26), neck=dict(in_channels=[104, 208, 416]))
