"""The READMEs and metafiles in configs/ against the tables and the files there."""

import pytest
import yaml
from conftest import ROOT

from prm_mmdet.papers import TABLES, find_table
from prm_mmdet.papers.index import index_files

CONFIGS = ROOT / 'configs'


@pytest.fixture(scope='module')
def texts():
    return index_files(CONFIGS)


def test_what_stands_in_configs_is_what_the_tables_say(texts):
    written = {p for kind in ('*.md', '*.yml') for p in CONFIGS.rglob(kind)}
    assert {p.relative_to(CONFIGS).as_posix() for p in written} == set(texts)
    for name, text in texts.items():
        stands = (CONFIGS / name).read_text(encoding='utf-8')
        assert stands == text, (
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
    prm = found['configs/prm/retinanet_r50-prm-c3-c5_fpn_2x_coco.py']
    assert prm['Results'][0]['Metrics'] == {'box AP': 37.7}
    assert 'Results' not in found['configs/prm/retinanet_r50-prm-c3-c5_fpn_1x_coco.py']
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
    assert links and all((CONFIGS / 'sac' / link).is_file() for link in links)
    for row in find_table('sac-V').rows:
        line = next(
            line
            for line in text.partition('**sac-V:')[2].splitlines()
            if f'({row.config.partition("/")[2]})' in line
        )
        assert f'| {row.cells["bbox_mAP_75"]} |' in line
