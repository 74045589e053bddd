"""Each promise of docs/reliability.md names a test that exists."""

import re

from conftest import ROOT


def test_every_promise_has_a_test():
    text = (ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')
    sources = {path.name: path.read_text(encoding='utf-8') for path in (ROOT / 'tests').rglob('test_*.py')}
    tests = {name for source in sources.values() for name in re.findall(r'^def (test_\w+)', source, re.MULTILINE)}
    named = set(re.findall(r'`(test_\w+)`', text))
    assert len(named) > 10 and named <= tests, named - tests
    assert set(re.findall(r'(test_\w+\.py)', text)) <= set(sources)
    for section in ('Nothing is lost', 'Exact resuming', 'Nobody is let in', 'Damaged data'):
        rows = text.split(f'## {section}\n')[1].split('\n## ')[0].splitlines()
        rows = [row for row in rows if row.startswith('| ') and not row.endswith('| test |')]
        assert rows and all('test_' in row or row.endswith('| the same |') for row in rows), section
