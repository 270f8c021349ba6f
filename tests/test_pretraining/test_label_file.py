"""Reading files of labels."""

import pytest

from prm_mmdet.pretraining.label_file import read_labels

WNIDS = ('n01440764', 'n01443537', 'n01751748', 'n09193705')


def read(tmp_path, text, classes=WNIDS):
    (tmp_path / 'labels').write_text(text)
    return read_labels(str(tmp_path / 'labels'), classes)


@pytest.mark.parametrize(
    'text',
    [
        'a.JPEG n01443537\nb.JPEG n09193705\nc.JPEG n01440764\n',
        'a.JPEG,n01443537\nb.JPEG,n09193705\nc.JPEG,n01440764\n',
        'a.JPEG 1\nb.JPEG 3\nc.JPEG 0\n',
        'a.JPEG\t1\r\n\n b.JPEG  3 \nc.JPEG 0',
    ],
    ids=['wnids', 'commas', 'indices', 'odd spaces'],
)
def test_labels(tmp_path, text):
    assert read(tmp_path, text) == {'a.JPEG': 1, 'b.JPEG': 3, 'c.JPEG': 0}


def test_the_solution_file_of_kaggle(tmp_path):
    text = (
        'ImageId,PredictionString\n'
        'ILSVRC2012_val_00000001,n01751748 156 48 272 332 n01751748 42 9 322 285 \n'
        'ILSVRC2012_val_00000002,n09193705 1 2 3 4 \n'
    )
    assert read(tmp_path, text) == {
        'ILSVRC2012_val_00000001': 2,
        'ILSVRC2012_val_00000002': 3,
    }


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        # The development kit's ground truth: a number a line, from 1.
        ('490\n361\n171\n', ['line 1', '490', 'wnid', 'meta.mat']),
        ('a 1\nb 2\nc 3\nd 4\n', ['may count from 1', 'wnid']),
        ('a 0\nb 4\n', ['class of b is 4', '4 classes']),
        ('a n01443537\nb n00000000\n', ['class of b is n00000000', 'n01440764']),
        ('a n01443537\nb 2\n', ['class of b is 2']),
        ('a 0\nb -1\n', ['class of b is -1']),
        ('a 0 0 1 0\nb 1 0 0 0\n', ['line 1', 'not an image and its class']),
        ('a 1 n01443537\nb 0 n01440764\n', ['line 1', 'not an image and']),
        ('a 0\na 1\n', ['line 2', "'a 1'", 'class 0']),
        ('\n', ['has no labels']),
        ('ILSVRC2012_val_00000001.JPEG 3\nb 0\n', ['sea snake', 'another order']),
        ('ILSVRC2012_val_00000001 n01440764\n', ['sea snake', 'n01751748']),
    ],
)
def test_labels_that_could_be_wrong_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    for word in (str(tmp_path / 'labels'), *words):
        assert word in str(error.value)


def test_numbers_as_names_of_classes(tmp_path):
    assert read(tmp_path, 'a 2\nb 0\n', ('0', '1', '2')) == {'a': 2, 'b': 0}
    # Sorted as words, ten comes before two.
    assert read(tmp_path, 'a 2\n', ('0', '1', '10', '2')) == {'a': 3}
    with pytest.raises(ValueError, match='class of a is 0'):
        read(tmp_path, 'a 0\nb 1\n', ('1', '2', '3'))


def test_encodings(tmp_path):
    path = tmp_path / 'labels'
    text = 'a\u00e9 0\nb 1\n'
    path.write_text(text, encoding='utf-8-sig')
    assert read_labels(str(path), WNIDS) == {'a\u00e9': 0, 'b': 1}
    for encoding in ('utf-16', 'latin-1'):
        path.write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match=r'labels is not in UTF-8.*save it'):
            read_labels(str(path), WNIDS)
