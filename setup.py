"""Packaging. From a checkout, `pip install -e .` has everything that the documentation speaks of at hand, and
`make setup` does that, with every version pinned by constraints.txt. A wheel holds the package and, in it,
`configs/`; not the tools, the tests and the results."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'hgd_det' / '__init__.py').read_text(),
                    re.MULTILINE)[1]
README = ROOT / 'README.md'

TEST = ['pytest>=8', 'pytest-xdist', 'hypothesis']
EXPORT = ['onnx', 'onnxruntime', 'onnxscript', 'safetensors']
DEV = [*TEST, *EXPORT, 'ruff', 'tensorboard']

setup(
    name='hgd_det',
    version=VERSION,
    description='Distil object detectors on MMDetection',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    # in the wheel configs/ are data of the package; hgd_det/paths.py looks in both places
    packages=[*find_packages(include=['hgd_det', 'hgd_det.*']), 'hgd_det.configs'],
    package_dir={'hgd_det.configs': 'configs'},
    package_data={'hgd_det.configs': ['**/*.py']},
    entry_points={'console_scripts': ['hgd-det = hgd_det.cli.main:main']},
    # The onedl packages are the maintained continuations of mmengine, mmcv and mmdet, under the
    # same import names. For the classic stack install this package with --no-deps, see Makefile.
    install_requires=[
        'torch>=2.4',
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmdetection>=3.5.1',
        'faster-coco-eval>=1.6',
        'matplotlib',
        'numpy',
        'opencv-python-headless',
        'pillow',
        'pycocotools>=2.0',
        'tqdm',
    ],
    extras_require={'test': TEST, 'export': EXPORT, 'dev': DEV},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
