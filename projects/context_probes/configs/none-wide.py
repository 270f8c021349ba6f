_base_ = 'none.py'
load_from = '{{$PROBE_BASE:work_dirs/base-wide/epoch_6.pth}}'
model = dict(backbone=dict(base_channels=26), neck=dict(in_channels=[104, 208, 416]))
