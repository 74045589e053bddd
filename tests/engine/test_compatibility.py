"""Private attributes of mmengine are used in one file only and exist in the installed version."""

import re
from pathlib import Path
from types import SimpleNamespace

from mmengine.runner import IterBasedTrainLoop
from mmengine.visualization import LocalVisBackend

import mmseg_ignite
from mmseg_ignite.engine import compatibility

PRIVATE = re.compile(r'\b(?:runner|cfg|visualizer|loop|hook|CheckpointLoader|data_preprocessor)\._[a-z]\w*')


def test_private_attributes_of_mmengine_are_used_in_one_file_only():
    found = {
        path.name: PRIVATE.findall(path.read_text(encoding='utf-8'))
        for path in Path(mmseg_ignite.__file__).parent.rglob('*.py')
        if '.mim' not in path.parts
    }
    assert {name for name, fields in found.items() if fields} == {'compatibility.py'}


def test_installed_mmengine_has_these_attributes(tmp_path):
    from mmengine.runner import Runner
    from torch import nn

    runner = Runner(nn.Linear(1, 1), str(tmp_path), experiment_name='compatibility')
    assert not compatibility.is_training(runner)
    assert [type(backend) for backend in compatibility.visualization_backends(runner)] == [LocalVisBackend]
    assert {'', 'http://'} <= compatibility.checkpoint_loaders().keys()
    assert Path(compatibility.mmengine_home()).name
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    compatibility.set_last_iteration(SimpleNamespace(train_loop=loop), 7)
    assert loop.max_iters == 7
