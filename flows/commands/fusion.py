"""``python -m flows fusion``: run ``sda-fusion`` in this process."""

from __future__ import annotations

from functools import partial

from flows.commands.options import EXIT_CODES
from flows.commands.running import add_run_arguments, run_here
from flows.pipelines import FUSION

EPILOG = EXIT_CODES
add_arguments = partial(add_run_arguments, FUSION)
run = partial(run_here, FUSION)
