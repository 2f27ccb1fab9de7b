"""`encsearch`: the table of commands; errors become one line and an exit code."""

import difflib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from encsearch import __version__
from encsearch.cli.console import say
from encsearch.cli.examples import add_examples
from encsearch.errors import NoticeError, PreflightError, TrainingError, UserError, guard_terminal

OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

# name: (module, help). The module is imported when its command runs, so `--help` stays instant.
COMMANDS = {
    "demo": ("demo", "Do everything on generated data: sweep, confirm, promote, predict, report."),
    "data": ("data", "Import, generate, check and describe data sets."),
    "check": ("training", "Validate a recipe against its data, without training."),
    "train": ("training", "Train one configuration with Ray Train and record it."),
    "sweep": ("sweeping", "Search hyperparameters, confirm the finalists, write a report."),
    "resume": ("resuming", "Go on with a job that was killed, or extend a finished sweep."),
    "ablate": ("ablation", "Train the paper's ablation side by side: table, curves, pictures."),
    "report": ("sweeping", "Write the HTML report of a sweep again."),
    "eval": ("models", "Score a model on a split: mIoU, pixAcc, per-class IoU."),
    "predict": ("predicting", "Write label maps and overlays of images."),
    "serve": ("serving", "Serve a model over HTTP: images in, label maps out, in batches."),
    "export": ("export", "Write a model as torch.export, ONNX or safetensors files, and check them."),
    "import-weights": ("export", "Make a model from a published EncNet's weights."),
    "promote": ("promoting", "Register the best checkpoint and move an alias to it, if it is better."),
    "rollback": ("promoting", "Move an alias back to the version before."),
    "models": ("promoting", "List registered models, their aliases, and the decisions on them."),
    "ui": ("browsing", "Open MLflow: serve a local store, print the pages of a job."),
    "runs": ("browsing", "List, show and compare the runs in MLflow."),
    "sync": ("browsing", "Send to MLflow what a killed job or an outage has left unsent."),
    "submit": ("jobs", "Run an encsearch command as a job on a Ray cluster."),
    "jobs": ("jobs", "List, follow and stop jobs."),
    "doctor": ("doctor", "Look whether a cluster, or this machine, is fit for jobs."),
    "recipes": ("training", "List the recipes that come with encsearch, or print one."),
    "config": ("training", "Print a recipe with every default resolved."),
    "schema": ("training", "Print the JSON schema of a recipe, or every config path."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"encsearch.cli.{COMMANDS[cmd_name][0]}")
        # `eval` is a Python name already.
        name = {"eval": "eval_"}.get(cmd_name, cmd_name.replace("-", "_"))
        command: click.Command = getattr(module, name)
        add_examples(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which suggests only commands that have been imported."""
        if args[0] in COMMANDS or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], COMMANDS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`encsearch --help` lists them"
        raise click.UsageError(f"no command {args[0]}; {hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train EncNet on Ray, search its hyperparameters, promote the best model.

    Exit codes: 0 done; 1 failed; 2 usage or config; 3 preflight refused; 4 promotion gate refused;
    5 budget spent.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code; people get one line for an error, never a traceback."""
    received = signal.SIGINT

    def terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(signum)
        # As Ctrl-C does: Ray 2.60 passes this on, but turns any SystemExit into SystemExit(1).
        raise KeyboardInterrupt

    guard_terminal()
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = cli.main(args=arguments, prog_name="encsearch", standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        message = error.format_message()
        # A group without a command: click 8.2 and newer raise its help as an error.
        is_help = message.startswith("Usage: ")
        say(message if is_help else f"error: {' '.join(message.split())}")
        code = 2
    except (UserError, TrainingError) as error:
        say(f"error: {error}".replace("\n", "\\n"))  # a name with a newline forges no line
        code = error.exit_code
    except NoticeError as error:
        say(f"terminated, {error}")
        code = 128 + signal.SIGTERM
    except ModuleNotFoundError as error:
        # The client's packages alone: `submit`, `jobs`, `recipes`, `config` and `schema` need no more.
        if not error.name or error.name.startswith("encsearch"):
            raise
        say(f"error: this command needs {error.name}, which is not installed; pip install 'encsearch[train]'")
        code = PreflightError.exit_code
    except OSError as error:
        if error.filename is None and error.errno not in OF_A_DISK:
            raise  # a bug: what else a person can mend has a path
        place = error.filename or "a file"
        say(f"error: {place}: cannot be used ({error.strerror})".replace("\n", "\\n"))
        code = TrainingError.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted" if received == signal.SIGINT else "terminated")
        code = 128 + received
    sys.exit(code if isinstance(code, int) else 0)
