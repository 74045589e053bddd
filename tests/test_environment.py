import pytest

from mmseg_ignite import environment

GOOD = {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation'}
ORIGINAL = {'mmengine', 'mmcv', 'mmsegmentation'}


@pytest.mark.parametrize(
    ('distributions', 'words'),
    [
        (GOOD, None),
        (ORIGINAL, None),
        (GOOD | {'mmcv'}, 'uninstall -y onedl-mmcv mmcv'),
        (GOOD | {'mmsegmentation'}, 'side by side'),
        (GOOD - {'onedl-mmcv'}, 'pip install onedl-mmcv'),
        (ORIGINAL - {'mmcv'} | {'mmcv-lite'}, 'operators'),
        (GOOD | {'mmcv-lite'}, 'side by side'),
    ],
)
def test_stack_fault(monkeypatch, distributions, words):
    monkeypatch.setattr(environment, 'installed', lambda name: '1.0' if name in distributions else None)
    fault = environment.stack_fault()
    assert fault is None if words is None else words in fault


def test_the_installed_stack_is_whole():
    assert environment.stack_fault() is None
