"""The command ``fastsae``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import fastsae


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for an error, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "info":
            _info()
        else:
            _demo(options)
    except KeyboardInterrupt:
        print("fastsae: interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError) as error:
        print(f"fastsae {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastsae", description="Sparse autoencoders, trained and run fast.")
    parser.add_argument("--version", action="version", version=f"fastsae {fastsae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser("demo", help="train on real data, print what was learned and write figures")
    demo.add_argument("--short", action="store_true", help="compute less, in a few seconds")
    demo.add_argument("--output", type=Path, default=Path("fastsae-demo"), help="folder of the figures (%(default)s)")
    demo.add_argument("--seed", type=_seed, default=0, help="seed of all random numbers (%(default)s)")
    commands.add_parser("info", help="say what this build computes with")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer in [0, 2^32), got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    from fastsae import demo

    demo.run(options.output, short=options.short, seed=options.seed)


def _info() -> None:
    from fastsae import _core

    print(f"fastsae  {fastsae.__version__}")
    print(f"Python   {platform.python_version()} on {platform.platform()}")
    print(f"threads  {_core.num_threads()}")
    print(f"ISA      {_core.isa()}")
    print(f"BLAS     {_core.blas()}")


if __name__ == "__main__":
    sys.exit(main())
