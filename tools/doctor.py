"""Check the machine: PASS, WARN or FAIL a line, each with its mend. Works where the stack is broken."""

import importlib.util
import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    spec = importlib.util.find_spec('mmseg_ignite')  # finds the package without importing it
    if spec is None:
        sys.exit('FAIL  mmseg_ignite is not installed: run "make setup", or "pip install ." in its checkout.')
    runpy.run_path(str(Path(spec.origin).with_name('doctor.py')), run_name='__main__')
