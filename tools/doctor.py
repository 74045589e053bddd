"""Check this machine: one line for each check, with what to do. Works where the installation is broken."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == '__main__':
    package = find_spec('mmseg_ignite')  # finds the package without importing it
    if package is None:
        sys.exit('FAIL  mmseg_ignite is not installed: run "make setup", or "pip install ." in its checkout.')
    spec = spec_from_file_location('doctor', Path(package.origin).with_name('doctor.py'))
    doctor = module_from_spec(spec)
    spec.loader.exec_module(doctor)
    doctor.main()
