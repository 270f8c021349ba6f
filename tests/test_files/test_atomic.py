"""Files that are written whole or not at all."""

import errno

import pytest

from prm_mmdet.files.atomic import replacing, write_file


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(errno.ENOSPC, 'full')])
def test_an_older_file_is_replaced_only_by_a_whole_one(tmp_path, error):
    path = tmp_path / 'folder' / 'out'
    write_file(path, 'old')
    with pytest.raises((KeyboardInterrupt, OSError)), replacing(path) as file:
        file.write(b'half')
        raise error
    assert path.read_text() == 'old'
    write_file(path, b'new')
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]
