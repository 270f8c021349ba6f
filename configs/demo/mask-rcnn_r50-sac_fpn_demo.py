_base_ = 'mask-rcnn_r50_fpn_demo.py'
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
