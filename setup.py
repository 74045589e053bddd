"""Packaging: the package, its command, and configs and tools under mmseg_ignite/.mim, where mim looks for them."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'mmseg_ignite' / 'version.py').read_text())[1]

APP = ['gradio>=6', 'shapely>=2.1']  # in 6, style and theme moved to launch()
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']
TIMM = ['timm', 'torchvision']
SLIDES = ['openslide-python>=1.4', 'openslide-bin', 'tifffile', 'imagecodecs', 'shapely>=2.1']
BIOIMAGEIO = ['bioimageio.core>=0.11', 'pydantic<2.14']  # bioimageio.spec 0.5.12 fails with pydantic 2.14


class BuildWithConfigs(build_py):
    """Copy configs and tools into the built package; a checkout has links instead."""

    def run(self) -> None:
        super().run()
        if not getattr(self, 'editable_mode', False):
            for folder in ('configs', 'tools'):
                target = Path(self.build_lib) / 'mmseg_ignite' / '.mim' / folder
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns('__pycache__'))
            shutil.copy(HERE / 'model-index.yml', target.parent)


setup(
    name='mmseg_ignite',
    version=VERSION,
    description='Tissue segmentation of H&E lung-cancer slides (IGNITE) with SegFormer, as an MMSegmentation plugin',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmseg_ignite', 'mmseg_ignite.*']),
    py_modules=['mmseg_ignite_command'],
    entry_points=dict(console_scripts=['mmseg-ignite = mmseg_ignite_command:main']),
    package_data={
        'mmseg_ignite.export': ['templates/*'],
        'mmseg_ignite.report': ['templates/*', 'static/*', 'static/*/*', '*.yml'],
        'mmseg_ignite.serving': ['static/*'],
        'mmseg_ignite.visualization': ['templates/*', 'static/*', '*.yml'],
    },
    cmdclass=dict(build_py=BuildWithConfigs),
    install_requires=[
        'torch>=2.4',
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmsegmentation>=1.4.2',
        'opencv-python',
        'numpy',
        'matplotlib',
        'pillow',
        'requests',
        'urllib3>=2.6',  # decompresses in bounded memory
        'rich',
        'scipy',
        'jinja2',
        'safetensors>=0.4.3',
    ],
    extras_require=dict(
        slides=SLIDES,
        export=EXPORT,
        bioimageio=BIOIMAGEIO,
        timm=TIMM,
        app=APP,
        tensorboard=['tensorboard'],
        dev=['pytest', 'pytest-xdist', 'hypothesis', 'scikit-learn', 'ruff', 'pytest-cov', 'tensorboard', 'selenium']
        + ['build', 'wheel', 'setuptools', 'rasterio', 'transformers', *SLIDES, *BIOIMAGEIO, *EXPORT, *APP, *TIMM],
    ),
)
