"""The command line: argv -> command -> exit code. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import shlex
import sys
import tempfile
import time
import traceback

import click

from slimline import __version__, commands
from slimline.commands._invocation import INTERRUPTED, Invocation
from slimline.core.interrupts import interruptible
from slimline.core.whole import DISK_FULL, UNUSABLE
from slimline.errors import BudgetNotMet, SlimlineError

DEFECT, USAGE = 1, 2


class CommandFiles(click.Group):
    """The commands are the files of ``slimline.commands``; one is imported when it is asked for."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{commands.__name__}.{cmd_name}").command
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from error


@click.group(cls=CommandFiles, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="slimline")
def command_line() -> None:
    """Make a trained model smaller and faster, and prove what it still can do.

    \b
    slimline compress TASK.py --max-drop 1% --time 10m --out build/
    slimline explain build/
    """


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; nothing but the status and the text on standard error tells of a failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = Invocation(time.monotonic(), shlex.join(["slimline", *arguments]))
    try:
        with interruptible():
            return int(command_line.main(args=arguments, prog_name="slimline", standalone_mode=False, obj=invocation) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "slimline"
        listed = "commands" if command == "slimline" and not isinstance(error, click.NoSuchOption) else "options"
        return _say(f"Error: {error.format_message()} `{command} --help` lists the {listed}.", USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _say("Interrupted.", INTERRUPTED)
    except BudgetNotMet as error:
        return _say(f"Verdict: fail. {error}", error.exit_code)
    except SlimlineError as error:
        return _say(f"Error: {error}", error.exit_code)
    except OSError as error:
        if error.errno in DISK_FULL:
            return _say(f"Error: The disk is full ({error.filename or tempfile.gettempdir()}). Free some space, or name another place with TMPDIR.", USAGE)
        if error.errno in UNUSABLE and error.filename:
            return _say(f"Error: {error.filename} cannot be used: {error.strerror}. Mend its permissions, or name another place.", USAGE)
        return _defect(error)
    except Exception as error:  # noqa: BLE001  # the last resort: becomes a record with its traceback
        return _defect(error)


def _say(text: str, status: int) -> int:
    """One paragraph on standard error."""
    click.echo(" ".join(text.split()), err=True)
    return status


def _defect(error: BaseException) -> int:
    text = "".join(traceback.format_exception(error))
    summary = f"Error: {type(error).__name__}: {str(error)[:300]}. This is a defect of Slimline's, not of your model."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="slimline-defect-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"slimline {__version__}\n{text}")
    except OSError:
        click.echo(text, err=True)
        return _say(summary, DEFECT)
    return _say(f"{summary} The traceback is in {file.name}; please report it with the command.", DEFECT)
