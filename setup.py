"""Setuptools' entry to the C build: see build_native.py."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_native

build_native.build_objects()
build_native.remove_other_extensions()
# One extension for every Python from 3.11 on, under one name (abi3), whoever builds it.
setup(cffi_modules=["build_native.py:make_ffi"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
