"""The command line: parse, call, print."""

import sys
from pathlib import Path

import click

from hwsearch import __version__
from hwsearch.errors import UserError

EXPERIMENT = click.argument("experiment", type=click.Path(path_type=Path))
RUNS_DIR = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of all runs."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="hwsearch")
def commands() -> None:
    """Find the bit-width of every layer of a speech separator."""


@commands.command()
@EXPERIMENT
@RUNS_DIR
@click.option("--processes", type=click.IntRange(1), default=2, help="Processes that simulate rooms.")
def train(experiment: Path, runs_dir: Path, processes: int) -> None:
    """Train the full-precision base of an experiment, or go on training it."""
    from hwsearch.display import train_with_progress
    from hwsearch.experiment import load_experiment
    from hwsearch.workspace import Workspace

    train_with_progress(Workspace(runs_dir, load_experiment(experiment)), processes)


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    try:
        commands(standalone_mode=False)
    except UserError as error:
        click.echo(f"hwsearch: error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"hwsearch: error: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("hwsearch: interrupted; the same command goes on where it stopped", err=True)
        sys.exit(130)
