"""The READMEs and metafiles in configs/ against the tables and the files there."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.index import index_files
from prm_mmdet.papers.interaction import HICO_DET

CONFIGS = ROOT / 'configs'


@pytest.fixture(scope='module')
def texts():
    return index_files(CONFIGS)


def test_files_in_configs_are_up_to_date(texts):
    written = {p for kind in ('*.md', '*.yml') for p in CONFIGS.rglob(kind)}
    assert {p.relative_to(CONFIGS).as_posix() for p in written} == set(texts)
    for name, text in texts.items():
        assert (CONFIGS / name).read_text(encoding='utf-8') == text, (
            f'configs/{name} is out of date: python tools/paper_tables.py --write'
        )


def test_metafiles_name_every_config_and_the_papers_results():
    index = yaml.safe_load((CONFIGS / 'model-index.yml').read_text())
    models = []
    for name in index['Import']:
        meta = yaml.safe_load((ROOT / name).read_text())
        assert (ROOT / meta['Collections'][0]['README']).is_file()
        models += meta['Models']
    configs = {m['Config'] for m in models}
    assert configs == {
        p.relative_to(ROOT).as_posix()
        for folder in ('prm', 'lct', 'sac', 'imagenet')
        for p in (CONFIGS / folder).glob('*.py')
    }
    assert len({m['Name'] for m in models}) == len(models)
    found = {m['Config']: m for m in models}
    prm = 'configs/prm/retinanet_r50-prm-{}_coco.py'
    (result,) = found[prm.format('c2-c5_fpn_2x')]['Results']
    assert result['Metrics'] == {'box AP': 37.7}
    # The paper's AP belongs to backbones that were pre-trained with the block.
    assert 'Results' not in found[prm.format('c3-c5_fpn_2x')]
    assert 'Results' not in found[prm.format('c3-c5_fpn_1x')]
    sac = found['configs/imagenet/resnet50-sac-c2-c4_4xb64-100e-warmup_imagenet.py']
    (result,) = sac['Results']
    assert result['Metrics'] == {'Top 1 Accuracy': 77.61, 'Top 5 Accuracy': 93.86}
    assert result['Dataset'] == 'ImageNet-1k'
    # Two tables print this one, the first of them to three digits.
    base = found['configs/imagenet/resnet50_4xb64-100e-warmup_imagenet.py']
    assert base['Results'][0]['Metrics']['Top 1 Accuracy'] == 76.426


def test_a_readme_has_the_tables_of_its_folder_and_every_config(texts):
    for folder in ('prm', 'lct', 'sac', 'imagenet'):
        text = texts[f'{folder}/README.md']
        for table in TABLES:
            assert (f'**{table.key}: ' in text) == (table.folder == folder)
        for path in (CONFIGS / folder).glob('*.py'):
            assert f'({path.name})' in text


def test_readmes_link_to_files_and_hold_the_numbers():
    text = (CONFIGS / 'sac' / 'README.md').read_text(encoding='utf-8')
    links = [part.split(')')[0] for part in text.split('](')[1:]]
    links = [link for link in links if '://' not in link]
    assert links and all((CONFIGS / 'sac' / link).is_file() for link in links)
    for row in find_table('sac-V').rows:
        line = next(
            line
            for line in text.partition('**sac-V:')[2].splitlines()
            if f'({row.config.partition("/")[2]})' in line
        )
        assert f'| {row.cells["bbox_mAP_75"]} |' in line


def test_readmes_say_that_two_papers_print_one_set_of_baselines(texts):
    aps = []
    for key in ('lct-6', 'sac-V', 'sac-VI'):
        cells = {r.config.partition('/')[2]: r.cells for r in find_table(key).rows}
        aps.append(
            {
                name.partition('_fpn')[0]: c['bbox_mAP']
                for name, c in cells.items()
                if '_r101_fpn' in name
            }
        )
    ours, *theirs = aps
    names = [f'{d}_r101' for d in ('faster-rcnn', 'mask-rcnn')]
    names += [f'{d}_r101' for d in ('cascade-rcnn', 'cascade-mask-rcnn')]
    theirs = {**theirs[0], **theirs[1]}
    assert [ours[n] for n in names] == [theirs[n] for n in names]
    said = '{}, {}, {} and {} box AP'.format(*(ours[n] for n in names))
    for folder in ('lct', 'sac'):
        text = ' '.join(texts[f'{folder}/README.md'].split())
        assert said in text and 'One number cannot come from both protocols' in text


def test_hico_det_is_printed_with_its_slips(texts):
    text = texts['sac/README.md'].partition('**sac-XI:')[2]
    remarked = set()
    for row in HICO_DET.rows:
        full, rare, other = (row.cells[c] for c in ('full', 'rare', 'non_rare'))
        mean = (138 * rare + 462 * other) / 600
        slip = abs(full - mean) > 0.01 + 1e-9  # each number is rounded to 0.01
        if slip:
            remarked.add((row.config, 'full'))
        stem = Path(row.config).stem
        link = f'| [{stem}](../{row.config}) | {full:.2f}{"*" * slip} | {rare:.2f} |'
        assert link in text
        assert (CONFIGS / row.config).is_file()
    assert remarked == set(HICO_DET.remarks) and len(remarked) == 2
    assert {r.config for r in HICO_DET.rows} <= {
        r.config for r in find_table('sac-X').rows
    }
