"""Running rows and their backbones: one real run, and stand-ins elsewhere."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from prm_mmdet.config import config_path
from prm_mmdet.experiments import Launch, launchers
from prm_mmdet.launch import MissingInput
from prm_mmdet.papers import TABLES, find_table, reproduce
from prm_mmdet.papers.reproduce import (
    Runs,
    backbone_of,
    choose,
    from_torchvision,
    row_cells,
    run_rows,
)
from prm_mmdet.papers.smoke import write_smoke_config
from prm_mmdet.papers.table_report import report

PLAIN, SE, PRM = (
    f'prm/retinanet_r50{block}_fpn_2x_coco.py'
    for block in ('', '-se-c2-c5', '-prm-c2-c5')
)
PRM_BACKBONE = 'resnet50-prm-c2-c5_8xb32-100e_imagenet'
PRM_FILE = 'checkpoints/resnet50-prm_imagenet.pth'
MULTI_SCALE = 'cascade-mask-rcnn_x101-32x4d-dconv-c3-c5-sac-c3-c5_fpn_4xb2-ms-1x_coco'

# In place of train.py: leaves behind what a training of all epochs leaves behind.
STAND_IN = """
import json, re, sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
epochs = 1 if 'smoke' in folder.parts else 100 if 'imagenet' in folder.name else 24
log = folder / '20270101_000000' / 'vis_data'
log.mkdir(parents=True)
metric = 'accuracy/top1' if 'imagenet' in folder.name else 'coco/bbox_mAP'
(log / 'scalars.json').write_text(json.dumps({metric: 0.4, 'step': epochs}))
(folder / 'last_checkpoint').write_text(f'/elsewhere/epoch_{epochs}.pth')
(folder / f'epoch_{epochs}.pth').write_text('weights')
"""
# In place of publish_checkpoint.py.
PUBLISH = """
import sys
from pathlib import Path

Path(sys.argv[2]).parent.mkdir(exist_ok=True)
Path(sys.argv[1]).rename(sys.argv[2])
"""


@pytest.fixture(scope='session')
def coco(demo_data, tmp_path_factory):
    """The demo data in COCO's folders and with names of COCO's classes."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for phase in ('train', 'val'):
        (root / f'{phase}2017').symlink_to(demo_data / phase)
        text = (demo_data / f'annotations/instances_{phase}.json').read_text()
        data = json.loads(text)
        names = enumerate(CocoDataset.METAINFO['classes'], 1)
        data['categories'] = [dict(id=i, name=name) for i, name in names]
        path = root / f'annotations/instances_{phase}2017.json'
        path.write_text(json.dumps(data))
    return root


@pytest.fixture
def place(coco, tmp_path, monkeypatch):
    """An empty current folder, with COCO and seven classes of ImageNet in reach."""
    for i in range(7):
        for phase in ('train', 'val'):
            (tmp_path / 'imagenet' / phase / f'n{i}').mkdir(parents=True)
    monkeypatch.setenv('MMDET_DATASETS', f'{coco}/')
    monkeypatch.setenv('IMAGENET', f'{tmp_path}/imagenet/')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')


@pytest.fixture
def stand_in(place, tmp_path, monkeypatch):
    """Stand-ins for the tools that a row runs."""
    (tmp_path / 'tools').mkdir()
    for name, text in (('train.py', STAND_IN), ('publish_checkpoint.py', PUBLISH)):
        (tmp_path / 'tools' / name).write_text(text)
    for module in (launchers, reproduce):
        monkeypatch.setattr(module, 'tool_path', lambda n: f'{tmp_path}/tools/{n}')


@pytest.fixture
def tool(place, run_tool):
    """Runs the tool with arguments."""
    return partial(run_tool, 'reproduce.py')


def words(cells, runs):
    launch = Launch(ranks=runs.ranks)
    return [outcome.word for outcome in run_rows(cells, launch, runs).values()]


def test_rows_are_chosen_once_and_by_pattern():
    assert choose([find_table('prm-4')])[:3] == [PLAIN, SE, PRM]
    everything = choose(TABLES)
    assert len({Path(config).stem for config in everything}) == len(everything) > 70
    twice = [find_table(key) for key in ('sac-II', 'sac-V')]
    assert len(choose(twice)) == 13
    chosen = choose(TABLES, ['retinanet_r50_*_2x*', '*r50-se-c2-c5*_2x*'])
    assert chosen == [PLAIN, SE]
    with pytest.raises(ValueError, match=r"'retina'; the rows are\n  retinanet_r50_"):
        choose(TABLES, ['*2x*', 'retina'])
    with pytest.raises(ValueError, match='name tables before --rows'):
        choose(TABLES, ['*2x*', 'sac-V'])


def test_every_detector_with_blocks_in_c2_has_a_backbone_of_its_paper():
    found = {c: b for c in choose(TABLES) if (b := backbone_of(c))}
    assert set(found) == {
        c for c in choose(TABLES) if '-c2-c5_fpn' in c and not c.startswith('sac')
    }
    assert len(found) == 4 + 8
    assert found[PRM] == (PRM_FILE, f'imagenet/{PRM_BACKBONE}.py')
    assert found['lct/mask-rcnn_r101-se-c2-c5_fpn_4xb1-1x_coco.py'] == (
        'checkpoints/resnet101-se_imagenet.pth',
        'imagenet/resnet101-se-c2-c5_4xb55-100e_imagenet.py',
    )
    for backbone, config in {b: c for c, (_, b) in found.items()}.items():
        trained = Config.fromfile(config_path(backbone)).model.backbone
        detector = Config.fromfile(config_path(config)).model.backbone
        assert detector.depth == trained.depth
        (ours,), (theirs,) = detector.plugins, trained.plugins
        assert ours.position == theirs.position
        # prm_mmdet.GC is MMCV's ContextBlock with other initial weights.
        ours.cfg.type = ours.cfg.type.replace('ContextBlock', 'prm_mmdet.GC')
        assert ours.cfg == theirs.cfg


def test_a_backbone_is_trained_and_published_before_its_detectors(stand_in, capsys):
    cascade = 'prm/cascade-rcnn_r50-prm-c2-c5_fpn_2x_coco.py'
    configs = [PRM, cascade]
    cells = row_cells(configs, Runs())
    names = [PRM_BACKBONE, Path(PRM).stem, Path(cascade).stem]
    assert [cell.name for cell in cells.values()] == names
    assert [c.after for c in cells.values()] == [(), *[(PRM_BACKBONE,)] * 2]
    assert words(cells, Runs()) == ['ok', 'ok', 'ok']
    assert Path(PRM_FILE).read_text() == 'weights'
    assert capsys.readouterr().out.endswith('runs: 3 ok\n')
    # The published file is enough: the training may have been elsewhere.
    assert list(row_cells(configs, Runs())) == configs
    # A row that is both a table's row and a backbone is one cell.
    Path(PRM_FILE).unlink()
    cells = row_cells([f'imagenet/{PRM_BACKBONE}.py', PRM], Runs())
    assert list(cells) == [f'imagenet/{PRM_BACKBONE}.py', PRM]
    assert cells[f'imagenet/{PRM_BACKBONE}.py'].makes == (Path(PRM_FILE),)


def test_a_smoke_run_leaves_no_checkpoint_but_the_backbones(stand_in, tmp_path):
    runs = Runs(smoke=True)
    cells = row_cells([PRM], runs)
    assert words(cells, runs) == ['ok', 'ok']
    left = [path.relative_to(tmp_path / 'here') for path in tmp_path.rglob('*.pth')]
    assert list(map(str, left)) == [f'work_dirs/smoke/{PRM_FILE}']
    assert os.listdir('work_dirs') == ['smoke']
    detector = Config.fromfile(f'work_dirs/smoke/{Path(PRM).name}')
    init_cfg = detector.model.backbone.init_cfg
    assert init_cfg.checkpoint == f'work_dirs/smoke/{PRM_FILE}'
    assert (init_cfg.type, init_cfg.prefix) == ('Pretrained', 'backbone.')
    assert words(row_cells([PRM], runs), runs) == ['finished before']


def test_rows_from_torchvision_have_no_paper_results(place, tmp_path):
    table = from_torchvision(find_table('prm-4'))
    stems = [Path(config).stem for config in choose([table])]
    assert stems[2] == 'retinanet_r50-prm-c3-c5_fpn_2x_coco'
    assert all((ROOT / 'configs' / c).is_file() for c in choose([table]))
    assert list(row_cells(choose([table]), Runs())) == choose([table])
    lines = report(table, tmp_path / 'here').splitlines()
    (plain,) = (line for line in lines if line.startswith('retinanet_r50_fpn'))
    (ours,) = (line for line in lines if line.startswith(stems[2]))
    assert '36.2' in plain and ours.split() == [stems[2]]
    assert 'not in the paper' in lines[0]
    with pytest.raises(ValueError, match='sac-V has no backbones'):
        from_torchvision(find_table('sac-V'))


def test_a_real_smoke_run_trains_evaluates_and_is_skipped_then(
    tool, coco, tmp_path, capsys
):
    arguments = ['sac-VI', '--rows', 'retinanet_r50_*', '--smoke', '--data-root', coco]
    name = 'retinanet_r50_fpn_4xb2-1x_coco'
    folder = Path(f'work_dirs/smoke/{name}')
    with pytest.raises(SystemExit) as stop:
        tool(*arguments)
    first = capsys.readouterr().out
    assert stop.value.code == 0, first
    assert f'[1/1] {name}: not begun, starting; log: {folder}/run.log' in first
    assert '\nruns: 1 ok\n' in first
    assert 'sac-VI: GC and SAC with other detectors' in first
    log = (folder / 'run.log').read_text()
    for text in ('(train) [1][2/2]', 'Saving checkpoint', 'coco/bbox_mAP', 'Scaling'):
        assert text in log
    assert ': nan' not in log
    # Nothing large stays, and nothing is where a real run would be.
    assert not list(tmp_path.rglob('*.pth'))
    assert os.listdir() == ['work_dirs'] and os.listdir('work_dirs') == ['smoke']

    with pytest.raises(SystemExit):
        tool(*arguments)
    assert f'[1/1] {name}: finished before\nruns: 1 finished before\n' in (
        capsys.readouterr().out
    )
    assert (folder / 'run.log').read_text() == log


def test_a_smoke_config_is_the_row_with_less(place):
    (config,) = choose(TABLES, [MULTI_SCALE])
    runs = Runs(smoke=True, ranks=2)
    write_smoke_config(config, runs.folder, runs.ranks)
    row = Config.fromfile(config_path(config))
    less = Config.fromfile(runs.folder / f'{MULTI_SCALE}.py')

    steps = less.train_dataloader.dataset.pipeline
    assert steps[2].scale == [(160, 77), (160, 96)]
    steps[2].scale = row.train_dataloader.dataset.pipeline[2].scale
    assert steps == row.train_dataloader.dataset.pipeline
    assert less.train_dataloader.batch_size == row.train_dataloader.batch_size
    annotations = json.loads(Path(less.train_dataloader.dataset.ann_file).read_text())
    assert len(annotations['images']) == 8
    assert less.val_evaluator.ann_file == less.val_dataloader.dataset.ann_file

    assert less.model.train_cfg.rcnn[2].sampler.num == 32
    assert less.model.test_cfg.rcnn.score_thr == 0
    for cfg in (row, less):
        del cfg.model.train_cfg, cfg.model.test_cfg, cfg.model.backbone.init_cfg
    assert less.model == row.model
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_imports'):
        assert less[key] == row[key]


def test_a_smoke_config_of_a_classifier_is_the_row_with_less(place):
    (config,) = choose(TABLES, ['mobilenet-v2-prm_*'])
    runs = Runs(smoke=True, ranks=2)
    write_smoke_config(config, runs.folder, runs.ranks)
    row = Config.fromfile(config_path(config))
    less = Config.fromfile(runs.folder / Path(config).name)
    for phase, images in (('train', 8), ('val', 2), ('test', 2)):
        loader = less[f'{phase}_dataloader']
        assert loader.batch_size == 2 and loader.dataset.indices == images
        steps = row[f'{phase}_dataloader'].dataset.pipeline
        small = 0
        for old, new in zip(steps, loader.dataset.pipeline):
            for key in {'size', 'short_edge', 'crop_size', 'scale'} & set(old):
                old_size, new_size = (
                    size[-1] if isinstance(size, (list, tuple)) else size
                    for size in (old[key], new[key])
                )
                assert new_size == round(0.12 * old_size)
                small += 1
        assert small
    assert less.model.backbone.model.pop('init_cfg') == []
    assert less.model.pop('num_classes') == 7  # a part of ImageNet will do
    assert row.model.pop('num_classes') == 1000
    assert less.model == row.model
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'val_evaluator'):
        assert less[key] == row[key]


@pytest.mark.parametrize('name', ['MMDET_DATASETS', 'IMAGENET'])
def test_missing_data_is_named_before_anything_starts(stand_in, monkeypatch, name):
    monkeypatch.setenv(name, 'nowhere')
    with pytest.raises(MissingInput, match=r'nowhere/(annotations|train)'):
        run_rows(row_cells([PLAIN, PRM], Runs()), Launch(), Runs())
    assert not os.listdir()


def test_the_tool_lists_rows_and_backbones(tool, capsys):
    pointer = Path('work_dirs', Path(PLAIN).stem, 'last_checkpoint')
    pointer.parent.mkdir(parents=True)
    pointer.write_text('epoch_3.pth')
    tool('prm-4', '--list', '--rows', 'retinanet_r50_*', '*r50-prm-*')
    needed = f'needs {PRM_FILE} from {PRM_BACKBONE}: not begun'
    lines = [' '.join(s.split()) for s in capsys.readouterr().out.splitlines()]
    assert lines == [
        'prm-4: Detection with different backbones',
        f'{Path(PLAIN).stem} after epoch 3 of 24',
        f'{Path(PRM).stem} not begun',
        needed,
        'cascade-rcnn_r50-prm-c2-c5_fpn_2x_coco not begun',
        needed,
    ]


def test_a_dry_run_shows_the_chain_and_writes_nothing(tool, capsys):
    tool('prm-4', '--dry-run', '--rows', '*retinanet_r50-prm*', '--smoke')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'# {PRM_BACKBONE}: not begun'
    assert lines[1].startswith(f'MMDET_DATASETS={os.environ["MMDET_DATASETS"]} IMAG')
    published = f'work_dirs/smoke/{PRM_BACKBONE}/epoch_1.pth'
    assert f'publish_checkpoint.py {published} ' in lines[2]
    assert lines[3] == f'# {Path(PRM).stem}: not begun'
    assert '--auto-scale-lr' in lines[4] and len(lines) == 5
    assert not os.listdir()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['sac-99'], "no table 'sac-99'"),
        (['prm-4', '--rows', 'retina'], "no row matches 'retina'; the rows are"),
        (['prm-4', '--data-root', 'nowhere'], 'nowhere/annotations/instances_train'),
        (['sac-V', '--from-torchvision'], 'leave --from-torchvision out'),
        (['--launcher', 'torchrun'], '--ranks go together'),
        (['--ranks', '4'], '--ranks go together'),
        (['--launcher', 'torchrun', '--ranks', '0'], 'must be above 0'),
        (['--jobs', '0'], 'must be above 0'),
        (['--partition', 'gpu'], 'requires --launcher slurm'),
    ],
)
def test_the_tool_reports_what_is_wrong(tool, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        tool(*arguments)
    assert message in f'{stop.value.code}' + capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert not os.listdir()
