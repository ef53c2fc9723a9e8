"""The packages, found and not listed: each folder stands at the top level and is installed as dlth.<folder>.

Bare `data` or `training` would collide in site-packages. All else is in pyproject.toml, which cannot put a prefix
before the names that it finds.
"""

from setuptools import find_packages, setup

FOLDERS = ("tickets", "data", "training", "pipeline")
FOUND = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])

setup(packages=[f"dlth.{name}" for name in FOUND], package_dir={f"dlth.{folder}": folder for folder in FOLDERS})
