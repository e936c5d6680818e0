"""The command line: `python -m tune VERB [options]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from perceiver.errors import UserError
from perceiver.openmp import spin_briefly
from pipelines.cli import PIPELINES, check_verb, fail, parse_pipeline
from pipelines.control import stoppable
from pipelines.program import run_program
from tune.config import SearchConfig

PROGRAM = "python -m tune"

_OVERVIEW = f"""usage: {PROGRAM} VERB [options]

Search latent shapes, layers, learning rates and whatever else a pipeline can be told.

  sentiment         the whole chain, by the accuracy of its last stage
  mlm               masked-language pretraining
  text-classifier   a text classifier
  image-classifier  an image classifier

The options are those of `python -m pipelines VERB`, which make the base configuration and trial 0, and those of the
search: `{PROGRAM} VERB -h` shows them all.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a search.

    Exits with status 0 if all went well, 2 because of a mistake of the user, 1 if no trial came to anything, 130 after
    Ctrl-C or SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_OVERVIEW)
        sys.exit(0)
    spin_briefly()
    verb, *options = arguments
    check_verb(verb, list(PIPELINES))
    command, (config,) = parse_pipeline(verb, options, PROGRAM, [SearchConfig], f"{verb}-search")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with stoppable():
            from tune.command import run

            sys.exit(run(command, config))
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command with --resume true goes on", file=sys.stderr)
        sys.exit(130)


def program() -> None:
    """Run one command as a process of its own."""
    run_program(main)


if __name__ == "__main__":
    program()
