"""The program: its commands, errors of one line, exit codes.

Exit codes, for scripts: 0 all is right; 1 the command did its work and found something wrong; 2 bad input, or
it could not do its work; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from dcp_core.errors import CloudCheckpointError

__all__ = ["main", "run"]

FAILED = 2
INTERRUPTED = 130
_COMMANDS = (
    *("ls", "show", "inspect", "head", "diff", "du", "verify"),
    *("cp", "rm", "gc", "convert", "bench", "schemes"),
)
#: Packages of the extra ``cli``.
_EXTRA = ("typer", "rich")


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    try:
        application, usage_error = _application()
    except ImportError as error:
        if error.name not in _EXTRA:
            raise
        return _fail("dcp-cloud", f"the command needs {error.name}: pip install 'dcp-cloud[cli]'")
    name = " ".join(("dcp-cloud", *(one for one in arguments[:1] if one in _COMMANDS)))
    try:
        code = int(application(list(arguments), prog_name="dcp-cloud", standalone_mode=False) or 0)
        # typer makes an exit code of Ctrl-C, and says nothing
        return _fail(name, "interrupted", INTERRUPTED) if code == INTERRUPTED else code
    except usage_error as error:
        return _explain(name, error)
    except BrokenPipeError:
        # the reader of the output has gone; nor must Python's last flush find out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    # CheckpointException is a BaseException, and a fault of this program must not exit as one of a checkpoint
    except BaseException as error:  # noqa: BLE001
        return _failure(name, error)


def _failure(name: str, error: BaseException) -> int:
    """Tell of an error in one line, unless it is a fault of this program; returns the exit code."""
    if isinstance(error, CloudCheckpointError):
        return _fail(name, str(error))
    if _is_interrupt(error):
        return _fail(name, "interrupted", INTERRUPTED)
    if isinstance(error, CheckpointException):
        return _fail(name, _first_failure(error))
    if isinstance(error, SystemExit):
        # click, after it has completed a line; or rich, whose output nobody reads any more
        return 0 if error.code in (0, None) else FAILED
    traceback.print_exception(error)
    return FAILED


def _application() -> tuple[Any, type[Exception]]:
    """The application, and the base of the errors about its arguments."""
    import typer

    application = typer.Typer(
        help="DCP checkpoints in cloud buckets.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    for name in _COMMANDS:
        application.command()(getattr(import_module(f"dcp_core.cli.{name}"), name))
    # typer has a click of its own, or that of the package click, depending on its release
    usage_error = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    return application, usage_error


def _explain(name: str, error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return FAILED
    return _fail(name, f"{error.format_message().removesuffix('.')}. Try '{name} --help'.")


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, also where torch took it for the failure of a rank."""
    if isinstance(error, CheckpointException):
        return any(isinstance(cause, KeyboardInterrupt) for cause, _ in error.failures.values())
    return isinstance(error, KeyboardInterrupt)


def _first_failure(error: CheckpointException) -> str:
    """The error of the first rank that failed; the others' are often its consequences."""
    rank, (cause, _) = min(error.failures.items())
    return str(cause) if isinstance(cause, CloudCheckpointError) else f"rank {rank}: {cause!r}"


def _fail(name: str, message: str, code: int = FAILED) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
