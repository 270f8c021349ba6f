"""The READMEs and metafiles in configs/ against the tables and the files there."""

import re
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


@pytest.mark.parametrize('folder', ['prm', 'lct', 'sac', 'imagenet'])
def test_a_readme_has_the_tables_of_its_folder_and_every_config(texts, folder):
    text = texts[f'{folder}/README.md']
    for table in TABLES:
        assert (f'**{table.key}: ' in text) == (table.folder == folder)
    links = set(re.findall(r'\]\((?!https?:)(.*?)\)', text))
    assert {path.name for path in (CONFIGS / folder).glob('*.py')} <= links
    assert all((CONFIGS / folder / link).is_file() for link in links)


def test_readmes_say_that_two_papers_print_one_set_of_baselines(texts):
    def baselines(*keys):
        rows = [row for key in keys for row in find_table(key).rows]
        aps = {Path(r.config).stem.split('_fpn')[0]: r.cells['bbox_mAP'] for r in rows}
        kinds = ('faster', 'mask', 'cascade', 'cascade-mask')
        return [aps[f'{kind}-rcnn_r101'] for kind in kinds]

    assert baselines('lct-6') == baselines('sac-V', 'sac-VI')
    said = '{}, {}, {} and {} box AP'.format(*baselines('lct-6'))
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
