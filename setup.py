"""The one thing pyproject.toml cannot say: which cffi module belongs to the package."""

from setuptools import setup

setup(cffi_modules=["native/build_native.py:ffibuilder"])
