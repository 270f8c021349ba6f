_base_ = '../_base_/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='prm_mmdet.SAC'),
                stages=(False, True, True, True),
                position='after_conv2',
            )
        ]
    )
)
