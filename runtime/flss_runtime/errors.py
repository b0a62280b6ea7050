"""Errors that a user can act on: each names the problem, the remedy and the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar


class FLSSError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        problem: What is wrong: what arrived and what was expected.
        fix: What the user can do about it, as an imperative sentence or a command.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}"


class CheckFailed(FLSSError):
    """A check ran to its end and the answer is no (parity, verification, a quality floor)."""

    exit_code: ClassVar[int] = 1


class UsageError(FLSSError):
    """A command or a function was called with arguments that make no sense together."""

    exit_code: ClassVar[int] = 2


class BundleError(FLSSError):
    """A bundle is missing, altered, incomplete or of a format this version does not understand."""

    exit_code: ClassVar[int] = 3


class UncalibratedError(BundleError):
    """The bundle has no calibrated threshold for the number of samples that was asked for."""


class CheckpointError(FLSSError):
    """A training checkpoint cannot be read or does not fit the architecture."""

    exit_code: ClassVar[int] = 3


class InferenceError(FLSSError):
    """An engine failed while running, or returned something that is no answer."""

    exit_code: ClassVar[int] = 4


class BenchmarkInvalid(FLSSError):
    """A benchmark ran, but the machine was too noisy or throttled for its numbers to mean anything."""

    exit_code: ClassVar[int] = 5


class EngineUnavailable(FLSSError):
    """The requested engine or precision does not exist on this machine."""

    exit_code: ClassVar[int] = 6


class GraphNotSupported(EngineUnavailable):
    """The engine is here and works, but has no way to run this graph."""


class DataError(FLSSError):
    """A picture or a data set cannot be read or is not what it should be."""

    exit_code: ClassVar[int] = 7


class OutputError(FLSSError):
    """An output cannot be written, or exists already and may not be replaced."""

    exit_code: ClassVar[int] = 7
