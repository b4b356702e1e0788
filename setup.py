"""What setuptools cannot be told in pyproject.toml: the C side (build_native.py), and links in an sdist."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_native

PACKAGE = build_native.ROOT / "live_migration"


class BuildExt(build_ext):  # type: ignore[misc]
    """Build what the extension is linked with."""

    def run(self) -> None:
        """Build, and go on as usual."""
        build_native.remove_other_extensions()
        build_native.build_stub()
        super().run()


class BuildPy(build_py):  # type: ignore[misc]
    """Build the programs before it is looked what files a package has."""

    def run(self) -> None:
        """Build, and go on as usual. What an earlier build collected, files that are gone since among it, stays out."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        build_native.build_programs()
        super().run()


class Sdist(sdist):  # type: ignore[misc]
    """Keep the package's links to the folders at the top, which setuptools would follow."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy everything but what is behind a link, and make the links."""
        links = [path.relative_to(build_native.ROOT) for path in PACKAGE.iterdir() if path.is_symlink()]
        super().make_release_tree(base_dir, [file for file in files if not {*links} & {*Path(file).parents}])
        for link in links:
            (Path(base_dir) / link).symlink_to((build_native.ROOT / link).readlink())


setup(
    cffi_modules=["build_native.py:make_ffi"],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "sdist": Sdist},
    # One extension for every Python from 3.11 on, under one name (abi3), whoever builds it.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
