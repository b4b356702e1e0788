"""Live migration of running Linux processes.

The folders of this package are links to those at the top of the tree, so that every module has one name, the same in
the tree, in tests, for type checkers and where it is installed. A package-dir in pyproject.toml would be known to
setuptools alone: type checkers and a Python started at the top of the tree look for folders.
"""
