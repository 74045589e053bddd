"""Checkpoints with a wrong state are not resumed, no path in them is followed, and damage is noticed."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_payloads import in_child, outcomes
from conftest import small_config
from runs import TINY

from mmseg_ignite.apis import train
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.checkpoints.contents import CHECKSUM, checksum, plain
from mmseg_ignite.engine.checkpoints.resuming import resume as load
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """A run of two iterations; tests must not change it."""
    return train(config(prepared, tmp_path_factory.mktemp('run') / 'a'))


@pytest.fixture(scope='module')
def state(trained):
    """Its checkpoint without the checksum, which would reveal any change."""
    content = open_checkpoint(Path(trained.work_dir) / 'iter_2.pth')
    del content[CHECKSUM]
    return content


SIZE = {'crops.crop_size': (32, 32), 'model.data_preprocessor.size': (32, 32)}


def config(prepared, folder, iterations=2):
    cfg = small_config(prepared, folder, iterations, **{'train_cfg.val_interval': 100, **TINY, **SIZE})
    cfg.default_hooks.checkpoint.interval, cfg.default_hooks.checkpoint.max_keep_ckpts = 2, 1
    return cfg


def copied(node):
    """Copy the containers of a checkpoint, not its tensors."""
    if isinstance(node, dict):
        return type(node)((key, copied(value)) for key, value in node.items())
    return [copied(value) for value in node] if isinstance(node, list) else node


def resumed(prepared, folder):
    return train(config(prepared, folder, 4), resume=True).iter


def resume(prepared, folder, content):
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / 'iter_2.pth')
    return in_child(resumed, prepared, folder, seconds=60)


def first(content):
    return content['optimizer']['state'][0]


def group(content):
    return content['optimizer']['param_groups'][0]


def put(*keys):
    """Return a change that sets the value at ``keys[:-1]`` to ``keys[-1]``."""

    def change(content):
        for key in keys[:-2]:
            content = content[key]
        content[keys[-2]] = keys[-1]

    return change


def names(content):
    return list(content['state_dict'])


def weight(change):
    """Return a change of the first weight."""
    return lambda content: content['state_dict'].update(
        {names(content)[0]: change(content['state_dict'][names(content)[0]])}
    )


def moment(change, which='exp_avg'):
    """Return a change of the optimizer's moment of the first weight."""
    return lambda content: first(content).update({which: change(first(content)[which])})


NAN = float('nan')
COUNTS = (-1, 2**62, NAN, '2', True, None)
RATES = (-1.0, NAN, float('inf'), 'a', None)
RESUMED = {
    **{f'iter {value!r}': put('meta', 'iter', value) for value in COUNTS},
    'iter of 600 digits': put('meta', 'iter', 10**600),
    'no iter': lambda content: content['meta'].pop('iter'),
    'no meta': lambda content: content.pop('meta'),
    'meta None': put('meta', None),
    'best_score text': put('message_hub', 'runtime_info', 'best_score', 'abc'),
    'no weight': lambda content: content['state_dict'].popitem(),
    'no weights': put('state_dict', {}),
    'other weight': lambda content: content['state_dict'].update(x=torch.ones(1)),
    'weight of another shape': weight(lambda value: torch.ones(1)),
    'weight of another type': weight(lambda value: value.bool()),
    'weight NaN': weight(lambda value: value * NAN),
    'optimizer list': put('optimizer', []),
    'optimizer None': put('optimizer', None),
    'optimizer empty': put('optimizer', {}),
    'no group': lambda content: content['optimizer']['param_groups'].pop(),
    'one more group': lambda content: content['optimizer']['param_groups'].append(dict(group(content))),
    'group without parameters': lambda content: group(content).update(params=[]),
    'group with other parameters': lambda content: group(content).update(params=[10**6]),
    **{f'learning rate {value!r}': put('optimizer', 'param_groups', 0, 'lr', value) for value in RATES},
    'betas': lambda content: group(content).update(betas=(2.0, 'a')),
    'eps': lambda content: group(content).update(eps=NAN),
    'no eps': lambda content: group(content).pop('eps'),
    'moment of another shape': moment(lambda value: torch.ones(1)),
    'moment without values': moment(lambda value: torch.ones(0)),
    'moment with more values': moment(lambda value: torch.ones(10**6)),
    'moment of another type': moment(lambda value: value.to(torch.int8)),
    'moment that is not dense': moment(lambda value: torch.zeros(1).expand(value.shape)),
    'moment NaN': moment(lambda value: value * NAN),
    'moment negative': moment(lambda value: value - 1, 'exp_avg_sq'),
    'moment text': moment(lambda value: 'abc'),
    'no moment': lambda content: first(content).pop('exp_avg_sq'),
    'no state': put('optimizer', 'state', 0, {}),
    'state of another parameter': put('optimizer', 'state', 10**6, {}),
    **{f'step {value!r}': put('optimizer', 'state', 0, 'step', value) for value in ('a', None, NAN, -1.0)},
    'step NaN': moment(lambda value: torch.tensor(NAN), 'step'),
    'step of another shape': moment(lambda value: torch.ones(3), 'step'),
    'schedules missing': lambda content: content['param_schedulers'].pop(),
    'schedules None': put('param_schedulers', None),
    'schedule list': put('param_schedulers', 0, []),
    'schedule NaN': lambda content: content['param_schedulers'][-1].update(_last_value=[NAN] * 99),
    'schedule text': lambda content: content['param_schedulers'][-1].update(last_step='abc'),
    'schedule replaces a method': lambda content: content['param_schedulers'][-1].update(step=1, _get_value=1),
}  # fmt: skip
HARMLESS = {
    'seed text': put('meta', 'seed', 'abc'),
    'seed 2^70': put('meta', 'seed', 2**70),
    'no message_hub': lambda content: content.pop('message_hub'),
    'message_hub list': put('message_hub', []),
    'message_hub empty': put('message_hub', {}),
    'runtime_info list': put('message_hub', 'runtime_info', []),
    'log_scalars list': put('message_hub', 'log_scalars', []),
    'no states': put('optimizer', 'state', {}),
}
"""What is then missing is started anew."""


def resume_into(runner, path):
    """Resume a built runner; check that a refusal leaves it unchanged."""
    before = state_of(runner)
    try:
        load(runner, open_checkpoint(path), path)
    except IgniteError:
        assert state_of(runner) == before
        raise


def state_of(runner):
    parts = [runner.model, runner.optim_wrapper, *runner.param_schedulers]
    return checksum(dict(parts=[plain(part.state_dict()) for part in parts], iter=runner.iter))


def written(state, changes, folder):
    """Write a changed checkpoint for each change; return their paths."""
    paths = []
    for number, change in enumerate(changes):
        content = copied(state)
        change(content)
        paths.append(folder / f'{number}.pth')
        torch.save(content, paths[-1])
    return paths


def test_a_wrong_state_is_not_resumed(trained, state, tmp_path):
    """All are tried on one runner, and a refusal leaves it as it was."""
    found = outcomes([(resume_into, trained, path) for path in written(state, RESUMED.values(), tmp_path)])
    wrong = {
        what: outcome for what, outcome in zip(RESUMED, found) if outcome.kind != 'refused' or '\n' in outcome.text
    }
    assert wrong == {}


def test_a_state_without_what_is_not_needed_is_resumed(prepared, trained, state, tmp_path):
    found = outcomes([(resume_into, trained, path) for path in written(state, HARMLESS.values(), tmp_path)])
    assert {what: outcome for what, outcome in zip(HARMLESS, found) if outcome.kind != 'returned'} == {}
    content = copied(state)
    for what in ('no states', 'message_hub empty'):
        HARMLESS[what](content)
    assert resume(prepared, tmp_path / 'w', content)[:2] == ('returned', '4')


def test_the_changed_states_come_from_one_that_is_resumed(prepared, state, tmp_path):
    assert resume(prepared, tmp_path / 'w', copied(state))[:2] == ('returned', '4')


def test_a_config_in_a_checkpoint_is_not_executed(prepared, state, tmp_path):
    """mmengine executes ``meta['config']`` when it resumes."""
    content = copied(state)
    for key in ('config', 'cfg', 'experiment_name', 'time'):
        content['meta'][key] = f'import os\nos.mkdir({str(tmp_path / f"ran_{key}")!r})\ngpu_ids = [1, 2, 3]\n'
    assert resume(prepared, tmp_path / 'w', content)[:2] == ('returned', '4')
    assert list(tmp_path.glob('ran_*')) == []


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


@pytest.fixture
def outside(tmp_path):
    """A folder of somebody else; it is not changed."""
    for name_ in ('keep.pth', 'iter_1.pth', 'sub/iter_1.pth', 'w2/iter_2.pth'):
        (tmp_path / 'outside' / name_).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'outside' / name_).write_bytes(b'mine')
    before = files(tmp_path / 'outside')
    yield tmp_path / 'outside'
    assert files(tmp_path / 'outside').items() >= before.items()


@pytest.mark.parametrize(
    'key, where',
    [('best_ckpt', where) for where in ('folder', 'file', 'relative', 'sub', 'dots', 'null byte')]
    + [('last_ckpt', where) for where in ('file', 'sub', 'dots')]
    + [('keep_ckpt_ids', where) for where in ('file', 'dots')],
)
def test_paths_in_a_checkpoint_lead_nowhere_else(prepared, state, outside, tmp_path, key, where):
    value = {
        'folder': str(outside), 'file': str(outside / 'keep.pth'), 'relative': '../outside/keep.pth',
        'sub': 'mine/keep.pth', 'dots': '..', 'null byte': 'a\0b',
    }[where]  # fmt: skip
    work = tmp_path / 'w'
    (work / 'mine').mkdir(parents=True)
    for mine in ('keep.pth', 'mine/keep.pth'):
        (work / mine).write_bytes(b'mine')
    content = copied(state)
    info = content['message_hub']['runtime_info']
    info[key] = [value, '../outside/iter_1'] if key == 'keep_ckpt_ids' else value
    info['best_score'] = -1.0
    outcome = resume(prepared, work, content)
    assert outcome.kind in ('refused', 'returned'), outcome
    assert (work / 'keep.pth').read_bytes() == (work / 'mine' / 'keep.pth').read_bytes() == b'mine'


@pytest.mark.parametrize('target', ['absolute', 'relative', 'link', 'pointer link', 'long', 'binary', 'null byte'])
def test_a_pointer_to_another_folder_is_not_followed(prepared, trained, outside, tmp_path, target):
    work = tmp_path / 'w'
    shutil.copytree(trained.work_dir, work)
    pointer = work / 'last_checkpoint'
    pointer.unlink(missing_ok=True)
    if target == 'link':
        (outside / 'iter_2.pth').write_bytes((work / 'iter_2.pth').read_bytes())
        (work / 'iter_2.pth').unlink()
        (work / 'iter_2.pth').symlink_to(outside / 'iter_2.pth')
        before = files(outside)
    elif target == 'pointer link':
        (outside / 'pointer').write_text('/etc/passwd')
        pointer.symlink_to(outside / 'pointer')
        before = files(outside)
    else:
        before = files(outside)
        pointer.write_bytes({
            'absolute': str(outside / 'keep.pth').encode(), 'relative': b'../outside/iter_1.pth', 'long': b'a/' * 10**6,
            'binary': b'\xff\xfe\x00', 'null byte': b'iter_2.pth\0',
        }[target])  # fmt: skip
    outcome = in_child(resumed, prepared, work, seconds=60)
    assert outcome.kind in ('refused', 'returned'), outcome
    assert files(outside) == before


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or hasattr(one, '__dict__')


def flipped(path, positions):
    """Flip one bit at a time; return the positions at which the damage was not noticed."""
    original, silent = open_checkpoint(path), []
    with open(path, 'r+b') as file:
        for position, bit in positions:
            file.seek(position)
            byte = file.read(1)[0]
            for value in (byte ^ 1 << bit, byte):
                file.seek(position)
                file.write(bytes([value]))
                file.flush()
                if value != byte:
                    try:
                        found = open_checkpoint(path)
                    except IgniteError:
                        continue
                    silent += [] if same(original, found) else [(position, bit)]
    return silent


def test_every_flipped_bit_is_noticed_or_harmless(trained, tmp_path):
    """In 20 places of the pickle and the first headers, 20 of the directory at the end, and 20 between."""
    path = Path(shutil.copy(Path(trained.work_dir) / 'iter_2.pth', tmp_path / 'x.pth'))
    size, generator = path.stat().st_size, random.Random(5)
    ends = [(0, 60_000), (60_000, size - 60_000), (size - 60_000, size)]
    assert size > 200_000
    positions = [(generator.randrange(*span), generator.randrange(8)) for span in ends for _ in range(20)]
    outcome = in_child(flipped, path, positions, seconds=120)
    assert outcome[:2] == ('returned', '[]'), outcome
