_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='prm_mmdet.MnasNet', out_indices=(7,)))
