"""The command line: ``socft toy STUDY`` measures, ``socft bench`` compares, ``socft verify``
checks, ``socft report`` typesets.

A study is a module ``toy.studies.<name>`` that defines ``STUDY``, a claim a module
``verify.<name>`` that defines ``CLAIM``, a report a module ``socft.report.<name>.report`` that
defines ``REPORT``; they are found by name, and those of a user's by file or by import path. A
command is a dataclass with a ``run`` method, listed in `COMMANDS`. Heavy imports belong in ``run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import operator
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from sd_experiments.commands import Sd
from socft.cli.about import Info, extra_with, version
from socft.cli.commands import (
    Bench,
    Command,
    Conform,
    DoesNotConform,
    Toy,
    Typeset,
    Verify,
    WriteLeaderboard,
    suggest,
)
from socft.cli.plugins import CLAIMS, REPORTS, STUDIES, Plugins, studies

__all__ = ["CLAIMS", "COMMANDS", "REPORTS", "STATUS", "STUDIES", "Plugins", "main", "parse"]

FAILED, INVALID, INTERRUPTED, UNHEARD, TERMINATED = 1, 2, 130, 141, 143
STATUS = {
    0: "all is done",
    FAILED: "tasks failed, or claims are not verified",
    INVALID: "an argument, or a file that is missing, damaged or cannot be written",
    INTERRUPTED: "interrupted",
    UNHEARD: "nobody reads its output any more",
    TERMINATED: "terminated",
}
"""What the exit status of every command means."""


PLACES = {
    "bash": Path(".local/share/bash-completion/completions/socft"),
    "zsh": Path(".zfunc/_socft"),
    "fish": Path(".config/fish/completions/socft.fish"),
}
"""Where shells look for completions, from the home folder."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """Install completion of commands and options in your shell.

    For example:
      socft completion
      socft completion zsh
      socft completion fish --file -   # print it
    """

    shell: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[bash|zsh|fish]", help="Your own, by $SHELL, by default."),
    ] = None
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write it, - for standard output; where the shell looks for it by default."""

    def run(self) -> None:
        from socft.checks import require_known
        from socft.files import write_atomically

        shell = self.shell or Path(os.environ.get("SHELL", "")).name
        require_known(shell, PLACES, "completion for the shell")
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard), contextlib.suppress(SystemExit):
            parse(["--tyro-print-completion", shell])
        if self.file == Path("-"):
            print(heard.getvalue(), end="")
            return
        file = self.file or Path.home() / PLACES[shell]
        write_atomically(file, heard.getvalue().encode())
        print(f"wrote {file}")
        suggest(
            "fpath+=~/.zfunc; autoload -Uz compinit; compinit   # also in ~/.zshrc"
            if shell == "zsh"
            else f"exec {shell}"
        )


COMMANDS: dict[str, type[Command]] = {
    "toy": Toy,
    "bench": Bench,
    "leaderboard": WriteLeaderboard,
    "conform": Conform,
    "verify": Verify,
    "report": Typeset,
    "sd": Sd,
    "info": Info,
    "completion": Completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is one of `STATUS`."""
    os.environ["MPLBACKEND"] = "agg"  # pictures are written; that of a notebook may not be there
    with _speaking(), _stopping() as stopped:
        try:
            try:
                parse(arguments).run()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            return UNHEARD
        except KeyboardInterrupt as error:
            said = str(error) or "interrupted; run the same command again to continue"
            return _say(said, *stopped or [INTERRUPTED])
        except Exception as error:
            explained = _explain(error)
            if explained is None:
                raise
            return _say(*explained)
    return 0


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """What is said is written whatever the locale, where it has no letter as an escape; output that
    nobody takes is not tried again when the process ends.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """SIGTERM stops a command as Ctrl-C does; yields its exit status once it came."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.append(TERMINATED)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: Sequence[str] | None) -> Command:
    """Only the command that is asked for is looked into; of the others the help shows a line.

    Raises:
        InvalidProblem: there is no such command or option.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = next(iter(given), "")
    if first == "--version":
        print(f"socft {version()}")
        raise SystemExit(0)
    _require_command(given)
    named: list[Any] = [
        Annotated[
            each if name == first or first.startswith("--tyro-") else _summary(each),
            tyro.conf.subcommand(name, description=_about(name, each, first, given[1:])),
        ]
        for name, each in COMMANDS.items()
    ]
    return tyro.cli(
        functools.reduce(operator.or_, named),
        prog="socft",
        description=(
            "Fine-tuning diffusion models by stochastic optimal control: measure, and typeset what"
            f" was measured. Exit status: {'; '.join(f'{k} {v}' for k, v in STATUS.items())}.\n\n"
            "For example:\n  socft toy convergence --quick\n  socft COMMAND --help\n"
            "  socft --version"
        ),
        args=given,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _require_command(given: Sequence[str]) -> None:
    first, second = [*given, "", ""][:2]
    if first and first not in ("-h", "--help") and not first.startswith("--tyro-"):
        option = first.startswith("-")
        known = ["--help", "--version"] if option else COMMANDS
        _require_known(first, known, "option" if option else "command")
    if first == "sd" and second and not second.startswith("-"):
        chosen = get_args(get_type_hints(Sd, include_extras=True)["command"])[0]
        own = {get_args(each)[1].name: get_args(each)[0] for each in get_args(chosen)}
        _require_known(second, own, "command sd")
        _require_choices(own[second], given[2:])
    elif first in COMMANDS:
        _require_choices(COMMANDS[first], given[1:])


def _require_choices(command: type, given: Sequence[str]) -> None:
    """The values of options that are one of some words."""
    for name, kind in get_type_hints(command).items():
        option = f"--{name.replace('_', '-')}"
        choices = [
            word
            for each in (kind, *get_args(kind))
            if get_origin(each) is Literal
            for word in get_args(each)
        ]
        for flag, value in itertools.pairwise(given):
            if choices and flag == option:
                _require_known(value, choices, f"{option} named")


def _require_known(name: str, known: Collection[str], what: str) -> None:
    """Nothing heavy is imported for a name that is known."""
    if name not in known:
        from socft.checks import require_known

        require_known(name, known, what)


def _about(name: str, command: type[Command], first: str, given: Sequence[str]) -> str:
    """What the help says of a command: everything if it is asked for, else a sentence."""
    text = inspect.cleandoc(command.__doc__ or "")
    if name != first:
        return " ".join(text.split("\n\n")[0].split())
    if command is not Toy or not {"-h", "--help"} & set(given):
        return text
    asked = next((each for each in given if not each.startswith("-")), None)
    return f"{text}\n\n{studies(asked)}"


def _summary(command: type[Command]) -> type:
    """A command of the same name without arguments."""
    return dataclasses.make_dataclass(command.__name__, [], frozen=True)


def _explain(error: Exception) -> tuple[str, int] | None:
    """One sentence and the exit code for an error of the user's, None for one that needs its
    traceback.
    """
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = extra_with(package)
        if extra is None:
            return None
        return f"this command needs {package}; run: pip install 'socft[{extra}]'", INVALID
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return (f"{said}: {error.filename}" if error.filename else said), INVALID
    from socft.checks import InvalidProblem
    from socft.study.runner import StudyFailed
    from toy.suite import EstimatorFailed
    from verify.support.command import ClaimsFailed

    failures = StudyFailed, ClaimsFailed, DoesNotConform, EstimatorFailed
    if isinstance(error, InvalidProblem):
        return str(error), INVALID
    return (str(error), FAILED) if isinstance(error, failures) else None


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody listens, and the status says it
        print(f"socft: {message}", file=sys.stderr)
    return code
