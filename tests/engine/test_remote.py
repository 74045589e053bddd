"""Checkpoints from addresses: downloaded once, checked against a SHA-256, limited in size, in one place of the package."""

import ast
import gzip
import hashlib
import threading
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

import mmseg_ignite
from mmseg_ignite.engine import safe_checkpoints
from mmseg_ignite.engine.checkpoints import remote
from mmseg_ignite.engine.checkpoints.remote import TRIES, fetch, local_file
from mmseg_ignite.errors import IgniteError

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f'x-{DIGEST[:8]}.pth'


def get(url):
    return fetch(url, sleep=lambda seconds: None)


def cached(served):
    return sorted(path.name for path in served.cache.iterdir()) if served.cache.is_dir() else []


def test_a_file_is_downloaded_once(served):
    served.files[NAME] = CONTENT
    for _ in range(2):
        assert get(f'{served.root}/{NAME}').read_bytes() == CONTENT
    assert served.requests == [(NAME, None)] and cached(served) == [NAME]


def test_a_hash_in_the_address_has_priority(served):
    """The name may end with a date; files of the same name do not replace each other in the cache."""
    served.files.update({'best-20220624.pth': CONTENT, 'best.pth': CONTENT, 'a%20file': CONTENT})
    names = ('best-20220624.pth', 'best.pth', 'a%20file?token=1')
    found = [get(f'{served.root}/{name}#sha256={DIGEST.upper()}').name for name in names]
    assert found == [f'best-20220624-{DIGEST[:8]}.pth', f'best-{DIGEST[:8]}.pth', f'a file-{DIGEST[:8]}']


@pytest.mark.parametrize(
    'name, expected',
    [
        ('x.pth', f'its SHA-256 is {DIGEST}: .*append #sha256={DIGEST}'),
        ('x-01234567.pth', f'SHA-256 {DIGEST}, but its name states 01234567.*#sha256='),
        (f'{NAME}#sha256={"0" * 64}', f'SHA-256 {DIGEST}, but the address states 0000'),
        (f'{NAME}#sha256=123', '64 hex digits'),
        (f'{NAME}#md5={"0" * 64}', '64 hex digits'),
        ('', 'file name without folders'),
        ('..%2Fevil-01234567.pth', 'SHA-256'),
        ('.hidden-01234567.pth', 'file name without folders'),
        ('a%5C..%5Cb-01234567.pth', 'file name without folders'),
        ('missing-01234567.pth', '404.*give its path'),
    ],
)
def test_an_unchecked_or_altered_file_is_refused_and_not_kept(served, name, expected):
    served.files.update({'x.pth': CONTENT, 'x-01234567.pth': CONTENT, NAME: CONTENT, '..%2Fevil-01234567.pth': CONTENT})
    with pytest.raises(IgniteError, match=expected) as error:
        get(f'{served.root}/{name}')
    assert str(error.value).count('. ') == 0 and cached(served) == []


def test_a_damaged_file_in_the_cache_is_downloaded_again(served):
    served.files[NAME] = CONTENT
    served.cache.mkdir(parents=True)
    (served.cache / NAME).write_bytes(b'damaged')
    assert get(f'{served.root}/{NAME}').read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_not_used_without_network(served):
    served.cache.mkdir(parents=True)
    (served.cache / NAME).write_bytes(b'damaged')
    with pytest.raises(IgniteError, match='cannot be downloaded .*check the network, or download the file yourself'):
        get(f'http://127.0.0.1:9/{NAME}')


def start(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace('_', '-'), str(value))
    handler.end_headers()


def test_a_lost_connection_is_continued(served):
    served.files[NAME] = CONTENT

    def answer(handler, content):
        first = int((handler.headers.get('Range') or 'bytes=0-')[6:-1])
        span = {'Content_Range': f'bytes {first}-{len(content) - 1}/{len(content)}'} if first else {}
        start(handler, 206 if first else 200, Content_Length=len(content) - first, **span)
        handler.wfile.write(content[first : first + 700_000])

    served.answer = answer
    assert get(f'{served.root}/{NAME}').read_bytes() == CONTENT
    assert served.requests == [(NAME, None), (NAME, 'bytes=700000-')]


@pytest.mark.parametrize('keep', [0, 1000])
def test_a_server_that_never_finishes_is_left(served, keep):
    """Also one that ignores Range and always cuts at the same place."""
    served.files[NAME] = CONTENT

    def answer(handler, content):
        start(handler, Content_Length=len(content))
        handler.wfile.write(content[:keep])

    served.answer = answer
    with pytest.raises(IgniteError, match='cannot be downloaded'):
        get(f'{served.root}/{NAME}')
    assert len(served.requests) == TRIES and cached(served) == []


@pytest.mark.parametrize('how', ['stated', 'unstated', 'compressed'])
def test_a_file_larger_than_the_limit_is_not_stored(served, monkeypatch, how):
    monkeypatch.setenv('MMSEG_IGNITE_MAX_GB', '0.001')
    sent = []

    def answer(handler, content):
        if how == 'stated':
            return start(handler, Content_Length=1 << 40)
        start(handler, **({'Content_Encoding': 'gzip'} if how == 'compressed' else {}))
        block = gzip.compress(bytes(1 << 24)) if how == 'compressed' else bytes(1 << 16)
        try:
            for _ in range(10_000):
                handler.wfile.write(block)
                sent.append(len(block))
        except OSError:
            pass

    served.answer = answer
    with pytest.raises(IgniteError, match='MMSEG_IGNITE_MAX_GB'):
        get(f'{served.root}/{NAME}')
    assert sum(sent) < 50_000_000 and cached(served) == []


def test_an_interrupted_download_leaves_nothing(served, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    served.files[NAME] = CONTENT
    monkeypatch.setattr(remote, '_receive', interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(f'{served.root}/{NAME}')
    assert cached(served) == []


def test_a_cache_that_cannot_be_written_is_a_sentence(served, tmp_path):
    served.files[NAME] = CONTENT
    (tmp_path / 'torch').write_text('a file')
    with pytest.raises(IgniteError, match='cannot be written .*TORCH_HOME'):
        get(f'{served.root}/{NAME}')


def test_redirects_are_followed_to_http_only(served):
    served.answer = lambda handler, content: start(handler, 302, Location='file:///etc/passwd')
    with pytest.raises(IgniteError, match='cannot be requested'):
        get(f'{served.root}/{NAME}')


def test_paths_are_not_changed():
    assert local_file('work/iter_1.pth') == Path('work/iter_1.pth') and local_file(Path('a')) == Path('a')
    assert local_file('~/x.pth') == Path.home() / 'x.pth'


@pytest.mark.parametrize('scheme', ['pavi', 's3', 'petrel', 'open-mmlab:s3', 'file', 'ftp', 'mine', ''])
def test_other_schemes_are_refused(scheme):
    with pytest.raises(IgniteError, match='download the file yourself and give its path'):
        local_file(f'{scheme}://x.pth')


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'])
def test_names_of_models_become_addresses(served, monkeypatch, scheme):
    monkeypatch.setitem(
        remote._TABLES, scheme, lambda: dict(good=f'{served.root}/{NAME}', bare=f'{served.root}/x.pth', n=None)
    )
    served.files.update({NAME: CONTENT, 'x.pth': CONTENT})
    assert local_file(f'{scheme}://good') == served.cache / NAME
    assert local_file(f'{scheme}://bare#sha256={DIGEST}').read_bytes() == CONTENT
    for name, expected in (('bare', 'append #sha256='), ('goood', 'did you mean good'), ('n', 'not in mmengine')):
        with pytest.raises(IgniteError, match=expected):
            local_file(f'{scheme}://{name}')


def test_tables_of_the_installed_mmengine(monkeypatch, tmp_path):
    """Old names are translated, and a user's own table may name files in mmengine's folder."""
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text('{"mine": "mine.pth"}')
    monkeypatch.setattr(remote, 'fetch', lambda url, remedy: url)
    assert local_file('openmmlab://mine') == tmp_path / 'mine.pth'
    assert local_file('open-mmlab://resnet50_v1c').endswith('.pth') and local_file('mmcls://vgg11').endswith('.pth')
    assert local_file('open-mmlab://resnet50_caffe') == local_file('open-mmlab://detectron/resnet50_caffe')


def test_torchvision_may_be_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torchvision', None)
    with pytest.raises(IgniteError, match='requires a package'):
        local_file('torchvision://resnet18')


def test_the_backbone_of_an_mmcls_checkpoint_is_used(served, tmp_path, monkeypatch):
    torch.save(dict(state_dict={'backbone.a': torch.ones(1), 'head.b': torch.ones(1)}), tmp_path / 'x.pth')
    content = (tmp_path / 'x.pth').read_bytes()
    name = f'y-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    served.files[name] = content
    monkeypatch.setitem(remote._TABLES, 'mmcls', lambda: dict(y=f'{served.root}/{name}'))
    with safe_checkpoints():
        assert CheckpointLoader.load_checkpoint('mmcls://y')['state_dict'].keys() == {'a'}


def test_every_loader_of_mmengine_is_replaced_and_restored():
    """Also one that another package registered, and while two threads use contexts that overlap."""
    CheckpointLoader.register_scheme('mine://', print)
    before = dict(CheckpointLoader._schemes)
    try:
        first, second = safe_checkpoints(), safe_checkpoints()
        first.__enter__()
        threading.Thread(target=second.__enter__).start()
        first.__exit__(None, None, None)
        assert not {*before.values()} & {*CheckpointLoader._schemes.values()}
        with pytest.raises(IgniteError, match='mine://'):
            CheckpointLoader.load_checkpoint('mine://x.pth')
        second.__exit__(None, None, None)
        assert CheckpointLoader._schemes == before
    finally:
        del CheckpointLoader._schemes['mine://']


FORBIDDEN = {
    'load_url', 'load_state_dict_from_url', 'download_url_to_file', 'urlopen', 'urlretrieve', 'load_from_http',
    'load_from_local', 'Unpickler', 'pickle.load', 'pickle.loads', 'torch.load',
    'hub.load', 'joblib', 'dill', 'shelve',
}  # fmt: skip
ALLOWED = {'torch.hub': 'remote.py', 'torch.jit.load': 'torchscript.py'}  # the latter, of files just written


def test_checkpoints_are_downloaded_and_opened_in_one_place():
    """No module unpickles a file or downloads one in another way."""
    wrong = []
    root = Path(mmseg_ignite.__file__).parent
    for path in [path for path in root.rglob('*.py') if '.mim' not in path.parts]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [ast.unparse(node)] if isinstance(node, (ast.Attribute, ast.Name)) else []
            names += [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            for name in names:
                bad = name in FORBIDDEN or any(name.endswith(f'.{end}') for end in FORBIDDEN)
                if bad or (name in ALLOWED and path.name != ALLOWED[name]):
                    wrong.append(f'{path.relative_to(root)}: {name}')
    assert wrong == []
