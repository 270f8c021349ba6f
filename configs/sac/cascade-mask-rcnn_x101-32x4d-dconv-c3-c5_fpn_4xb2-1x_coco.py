_base_ = 'cascade-mask-rcnn_x101-32x4d_fpn_4xb2-1x_coco.py'
dcn = dict(type='DCN', deform_groups=1, fallback_on_stride=False)
model = dict(backbone=dict(dcn=dcn, stage_with_dcn=(False, True, True, True)))
