"""Check this machine: Python, torch, the mm-packages, OpenCV, disk, data, and the model on a small image.

Prints PASS, WARN or FAIL for each check, with what to do. Exits with status 1 if one fails.
"""

# Run by path, not imported, so that it works where the package cannot be imported, and on older Python versions.

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from environment import STACK, hide_broken_torchvision, installed, stack_fault, torchvision_fault  # noqa: E402

sys.path.pop(0)


def check_python() -> tuple[str, str]:
    version = '.'.join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 10):  # noqa: UP036  this file runs on any Python
        return 'FAIL', f'Python {version}; 3.10 or newer is needed: install it and run "make setup" again.'
    return 'PASS', f'Python {version}'


def check_torch() -> tuple[str, str]:
    try:
        import torch
    except ImportError as error:
        return 'FAIL', f'torch cannot be imported ({error}): run "pip install torch==2.13.0".'
    if torch.cuda.is_available():
        return 'PASS', f'torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}'
    advice = 'on a machine with an NVIDIA GPU, install its driver and a CUDA build of torch'
    return 'WARN', f'torch {torch.__version__} finds no CUDA device: everything works, but slowly; {advice}.'


def check_distributions() -> tuple[str, str]:
    fault = stack_fault()
    if fault:
        return 'FAIL', fault
    found = {package: [f'{d} {installed(d)}' for d in pair if installed(d)] for package, pair in STACK.items()}
    return 'PASS', ', '.join(names[0] if names else f'{package} without metadata' for package, names in found.items())


def check_imports() -> tuple[str, str]:
    hide_broken_torchvision()  # as the package itself does
    for package in (*STACK, 'mmseg.apis', 'mmseg_ignite'):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                importlib.import_module(package)
        except Exception as error:  # a broken installation may raise anything
            return 'FAIL', f'{package} cannot be imported ({error}): reinstall it with "pip install --force-reinstall".'
    return 'PASS', 'mmengine, mmcv, mmseg and mmseg_ignite can be imported'


def check_opencv() -> tuple[str, str]:
    found = [d for d in ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python') if installed(d)]
    try:
        import cv2
    except ImportError as error:
        remedy = 'run "apt-get install libgl1 libglib2.0-0" (Debian), or install opencv-python-headless instead'
        return 'FAIL', f'OpenCV cannot be imported ({error}): {remedy}.'
    if len(found) > 1:
        return 'WARN', f"{' and '.join(found)} overwrite each other's files: uninstall both, install one."
    return 'PASS', f'OpenCV {cv2.__version__}'


def check_extras() -> tuple[str, str]:
    packages = dict(slides='openslide', export='onnxruntime', app='gradio', timm='timm', tensorboard='tensorboard')
    found = [extra for extra, package in packages.items() if importlib.util.find_spec(package) is not None]
    if 'timm' in found and (fault := torchvision_fault()):
        return 'WARN', fault
    return 'PASS', f'installed: {", ".join(found) or "none"} (of {", ".join(packages)})'


def check_disk() -> tuple[str, str]:
    free = shutil.disk_usage('.').free / 1e9
    advice = '' if free >= 40 else '; archives, release and arrays need about 40 GB: use another disk.'
    return 'WARN' if advice else 'PASS', f'{free:.0f} GB free here{advice}'


def check_data(data_root: str) -> tuple[str, str]:
    try:
        index = importlib.import_module('mmseg_ignite.datasets.prepared').read_index(data_root)
    except Exception as error:
        return 'WARN', f'no data yet: {error}'
    return 'PASS', f'{data_root}: {len(index["rois"])} ROIs, splits {", ".join(index["splits"])}'


def check_forward() -> tuple[str, str]:
    try:
        import torch
        from mmengine.config import Config
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS

        from mmseg_ignite import config_path

        init_default_scope('mmseg')
        model = Config.fromfile(config_path('segformer/segformer_mit-b0_1xb8-demo_ignite-256x256.py')).model
        model.decode_head.norm_cfg = dict(type='BN')
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        with torch.inference_mode():
            shape = MODELS.build(model).to(device).eval()(torch.zeros(1, 3, 128, 128, device=device)).shape
    except Exception as error:
        return 'FAIL', f'SegFormer-B0 does not run ({type(error).__name__}: {error}): fix the problems above first.'
    return 'PASS', f'SegFormer-B0 runs on {device}: 1 x 3 x 128 x 128 -> {" x ".join(map(str, shape))}'


def main() -> None:
    """Print the result of each check; exit with status 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data-root', default='data/ignite', help='prepared data set to check (default: %(default)s)')
    args = parser.parse_args()
    checks = dict(python=check_python, torch=check_torch, stack=check_distributions, imports=check_imports)
    checks.update(
        opencv=check_opencv,
        extras=check_extras,
        disk=check_disk,
        data=lambda: check_data(args.data_root),
        model=check_forward,
    )
    failed = False
    for name, check in checks.items():
        status, text = check()
        failed |= status == 'FAIL'
        print(f'{status}  {name:<8} {text}', flush=True)
    sys.exit(failed)
