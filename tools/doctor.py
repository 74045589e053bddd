"""Check this machine: one line per check, with what to do. Works in a broken installation."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == '__main__':
    package = find_spec('mmseg_ignite')  # does not import the package
    if package is None:
        sys.exit('FAIL  mmseg_ignite is not installed: run "make setup", or "pip install ." in its checkout.')
    spec = spec_from_file_location('doctor', Path(package.origin).with_name('doctor.py'))
    doctor = module_from_spec(spec)
    spec.loader.exec_module(doctor)
    doctor.main()
