"""The error of an experiment, told in one sentence."""

from __future__ import annotations


class ExperimentError(Exception):
    """An experiment cannot go on: a sentence with the object, the cause and the remedy, and the command's status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status
