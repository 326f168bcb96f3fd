"""The command line: ``unperturb VERB``; every verb works in Python too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from unperturb.cli.attack import attack
from unperturb.cli.audit import audit, merge, report
from unperturb.cli.bank import bank
from unperturb.cli.compare import compare
from unperturb.cli.correct import correct
from unperturb.cli.cost import cost
from unperturb.cli.demo import demo
from unperturb.cli.explain import explain
from unperturb.cli.fit import fit
from unperturb.cli.fit_alu import alu
from unperturb.cli.fit_atop import atop, gan, mae
from unperturb.cli.fit_denoiser import denoiser
from unperturb.cli.fit_vae import vae
from unperturb.cli.listing import listing
from unperturb.cli.predict import predict
from unperturb.cli.reproduce import reproduce
from unperturb.cli.train import train
from unperturb.cli.weights import convert
from unperturb.errors import OutputError, UnperturbError

__all__ = ["main"]

DONE, FAILED, WRONG_USE, BELOW_GATE, STOPPED = 0, 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="unperturb", prog_name="unperturb")
def unperturb() -> None:
    """Put a test-time defense around a trained image classifier, and find out honestly how much
    robustness it adds.

    \b
    Begin with:   unperturb demo
    Then:         unperturb audit --classifier cifar-resnet20@weights.safetensors \\
                    --defense tpap --data cifar10/ --limit 1000 --eps 8/255 --out runs/first

    Exit codes: 0 done, 1 failed, 2 wrong use, 3 below the gate (--fail-under), 130 stopped.
    """


for part in (vae, alu, denoiser, gan, mae, atop):
    fit.add_command(part)

for command in (
    demo,
    audit,
    report,
    merge,
    compare,
    predict,
    attack,
    explain,
    train,
    bank,
    fit,
    correct,
    cost,
    reproduce,
    convert,
    listing,
):
    unperturb.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: mistakes get one message, never a traceback.

    Args:
        arguments: What follows the program's name; those of this process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    given = None if arguments is None else list(arguments)
    try:
        code = unperturb.main(args=given, prog_name="unperturb", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped; what is finished is kept", err=True)
        sys.exit(STOPPED)
    except click.ClickException as error:
        error.show()
        sys.exit(WRONG_USE)
    except UnperturbError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED if isinstance(error, OutputError) else WRONG_USE)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)
    except (MemoryError, RuntimeError) as error:
        words = _out_of_means(error)
        if words is None:
            raise
        click.echo(f"error: {words}", err=True)
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else DONE)


def _out_of_means(error: MemoryError | RuntimeError) -> str | None:
    """Words for what the machine, not the program, is to blame for; None for anything else."""
    if type(error).__name__ == "BrokenProcessPool":
        return (
            "A worker process was killed, perhaps because memory ran out. What is finished is "
            "kept. Fix: run the same command again with fewer --workers."
        )
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return (
            "Memory ran out. What is finished is kept. "
            "Fix: a smaller --batch-size (in an audit, with another --out), or a smaller --limit."
        )
    return None
