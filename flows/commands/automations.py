"""``python -m flows automations``: install, list or remove Prefect automations on a pipeline's events.

``orchestrator_adapter.prefect_flow.automations`` defines them; this is their command line. It knows nothing of a run and
sends requests only to the server that ``PREFECT_API_URL`` names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx

from flows.commands.messages import announce, report_problems
from flows.commands.options import add_api_wait_argument
from flows.local_prefect.api_health import wait_for_api
from flows.output import print_line, print_problem
from flows.pipelines import FUSION
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.notice import ALERT_EVENT, CONJUNCTION, SEVERITY_LABEL
from sda_ops.alerts.outbox.rules import SEVERITIES

if TYPE_CHECKING:  # importing Prefect takes a second
    from prefect.client.orchestration import PrefectClient
    from prefect.events.schemas.automations import AutomationCore

    from orchestrator_adapter.prefect_flow.automations import NotificationBlock

# More than a restart a minute for ten minutes. The restart budget (5 in 60 s by default) does not stop these.
_RESTARTS, _WITHIN_S = 10, 600.0
_HEARTBEATS = 3  # one or two may be lost
_SHORTEST_WATCH_S = 10  # Prefect's own minimum
_ALERTS = "medium"

EPILOG = """\
the automations, each named "FLOW: NAME":
  alarm     an operator panicked, exhausted its restart budget, did not stop, or violated the ledger: notify
  alerts    sda-fusion has a new or materially changed alert about a conjunction: notify; see --alerts
  flapping  one operator was restarted more than N times within S seconds: see --on-flapping
  zombie    a run's heartbeats stopped and it has not ended, as after kill -9: set it Crashed
  reaped    zombie has set a run Crashed: notify

--on-flapping, each with a notification if --webhook or --block is given:
  pause     pause the deployment: its schedules start no more runs. The present run continues, and its operators are
            restarted as before. A run that was started without a deployment has none to pause
  notify    nothing else; needs --webhook or --block
  cancel    cancel the run: sources stop, the stream drains, the run ends Cancelled; a schedule may start the next

The command makes the installed automations match its options: automations of this flow that it does not ask for are
removed. Automations with other names are not changed. One that you disabled in Prefect stays disabled.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``automations``."""
    parser.add_argument("--flow", default="sda-ingest", help="the flow whose runs they watch (default: %(default)s)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--webhook", metavar="URL", help="notify this URL: POST, a JSON object")
    target.add_argument(
        "--block",
        metavar="TYPE/NAME",
        help="notify with this block of the server, for example slack-webhook/on-call; `prefect block ls` lists them",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=_RESTARTS,
        metavar="N",
        help="more restarts of one operator are flapping (default: %(default)s)",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=_WITHIN_S,
        metavar="S",
        help="the time of these restarts, seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--on-flapping",
        choices=("pause", "notify", "cancel"),
        default="pause",
        help="the reaction (default: %(default)s); see below",
    )
    parser.add_argument(
        "--zombie-after",
        type=float,
        metavar="S",
        help="a run without a heartbeat for so many seconds counts as dead "
        "(default, and least: 3 x PREFECT_FLOWS_HEARTBEAT_FREQUENCY, 540 s)",
    )
    parser.add_argument(
        "--alerts",
        choices=(*SEVERITIES, "none"),
        help=f"notify of alerts of at least this severity (default: {_ALERTS} for {FUSION.name}, none for other flows)",
    )
    add_api_wait_argument(parser, default_s=10.0)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--remove", action="store_true", help="remove this flow's automations, and its webhook block")
    instead.add_argument("--list", action="store_true", help="print the installed ones, and change nothing")
    instead.add_argument("--dry-run", action="store_true", help="print what would be installed; needs no server")


def run(args: argparse.Namespace) -> int:
    """Install, list or remove. If that fails, the exit code is 1, with one line for each problem."""
    heartbeat_s = heartbeat_frequency()
    if problems := problems_with(args, heartbeat_s):
        return report_problems("automations", problems)
    if args.dry_run:
        for automation in _wanted(args, _placeholder(args), heartbeat_s):
            _print_described(automation)
        return _done(args, heartbeat_s)
    api_url = os.environ.get("PREFECT_API_URL")
    if not api_url:
        return report_problems("automations", ["automations live on a Prefect server: set PREFECT_API_URL"])
    if why := asyncio.run(wait_for_api(api_url, args.api_wait, _announce_wait)):
        return report_problems("automations", [f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}"])
    return asyncio.run(_act(args, heartbeat_s))


def heartbeat_frequency() -> int | None:
    """The heartbeat period of flow runs in this environment, seconds; ``None`` if they send none."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 - see above

    return get_current_settings().flows.heartbeat_frequency


def problems_with(args: argparse.Namespace, heartbeat_s: int | None) -> list[str]:
    """A sentence for each problem of the options."""
    problems = []
    if args.webhook is not None and not args.webhook.startswith(("http://", "https://")):
        problems.append(f"--webhook: expected an http:// or https:// URL, got {args.webhook!r}")
    if args.restarts < 1:
        problems.append(f"--restarts: expected at least 1, got {args.restarts}")
    if not args.within > 0:
        problems.append(f"--within: expected more than 0 s, got {args.within:g}")
    if args.zombie_after is not None and heartbeat_s is not None and not args.zombie_after >= _HEARTBEATS * heartbeat_s:
        problems.append(
            f"--zombie-after {args.zombie_after:g} would crash live runs: heartbeats come every {heartbeat_s} s, and a few "
            f"may be late; expected at least {_HEARTBEATS * heartbeat_s}, or a PREFECT_FLOWS_HEARTBEAT_FREQUENCY as low as "
            "where the pipeline runs"
        )
    elif args.zombie_after is not None and not args.zombie_after >= _SHORTEST_WATCH_S:
        problems.append(
            f"--zombie-after: Prefect accepts no less than {_SHORTEST_WATCH_S} s, got {args.zombie_after:g}"
        )
    return problems


def unmet(args: argparse.Namespace, heartbeat_s: int | None) -> list[str]:
    """A sentence for each automation that these options do not give, with the option that would."""
    missing = []
    if args.webhook is None and args.block is None:
        lost = ["no alarm"] + ["no alerts"] * bool(_severities(args)) + ["no flapping"] * (args.on_flapping == "notify")
        missing.append(
            f"no notification is configured, so there is {' and '.join(lost)}: add --webhook URL or --block TYPE/NAME"
        )
    if _zombie_after(args, heartbeat_s) is None:
        missing.append(
            "no zombie: flow runs here send no heartbeats; set PREFECT_FLOWS_HEARTBEAT_FREQUENCY here and where the "
            "pipeline runs"
        )
    return missing


async def _act(args: argparse.Namespace, heartbeat_s: int | None) -> int:
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - see above

    from orchestrator_adapter.prefect_flow import automations as ready  # noqa: PLC0415 - see above

    try:
        async with get_client() as client:
            if args.list:
                installed = await ready.installed_for(client, args.flow)
                for automation in installed:
                    _print_described(automation)
                if not installed:
                    print_problem(f"automations: none for {args.flow}; install them without --list")
                return ExitCode.OK
            if args.remove:
                await _remove(client, args.flow, keep=())
                await ready.remove_webhook(client, args.flow)
                return ExitCode.OK
            wanted = _wanted(args, await _target(client, args), heartbeat_s)
            for done in await ready.install(client, wanted):
                note = "" if done.enabled else "  (disabled in Prefect; stays disabled)"
                print_line(f"{done.what:9} {done.name}{note}")
            await _remove(client, args.flow, keep={automation.name for automation in wanted})
            if args.webhook is None:
                await ready.remove_webhook(client, args.flow)
    except ready.UnusableBlock as error:
        return report_problems("automations", [f"--block: {error}"])
    except httpx.HTTPError as error:
        return report_problems("automations", [f"the Prefect API at {os.environ['PREFECT_API_URL']} failed: {error}"])
    return _done(args, heartbeat_s)


async def _target(client: PrefectClient, args: argparse.Namespace) -> NotificationBlock | None:
    from orchestrator_adapter.prefect_flow import automations as ready  # noqa: PLC0415 - see above

    if args.webhook is not None:
        return await ready.save_webhook(client, args.flow, args.webhook)
    if args.block is not None:
        return await ready.find_block(client, args.block)
    return None


async def _remove(client: PrefectClient, flow: str, *, keep: Collection[str]) -> None:
    from orchestrator_adapter.prefect_flow import automations as ready  # noqa: PLC0415 - see above

    for done in await ready.uninstall(client, flow, keep=keep):
        print_line(f"{done.what:9} {done.name}")


def _wanted(
    args: argparse.Namespace, target: NotificationBlock | None, heartbeat_s: int | None
) -> list[AutomationCore]:
    from orchestrator_adapter.prefect_flow import automations as ready  # noqa: PLC0415 - see above

    return ready.automations_for(
        args.flow,
        target=target,
        restarts=args.restarts,
        within=timedelta(seconds=args.within),
        on_flapping=ready.OnFlapping(args.on_flapping),
        zombie_after=_zombie_after(args, heartbeat_s),
        notices=ready.WantedNotices(ALERT_EVENT, f"{CONJUNCTION}*", {SEVERITY_LABEL: severities})
        if (severities := _severities(args))
        else None,
    )


def _severities(args: argparse.Namespace) -> tuple[str, ...]:
    """The severities of the alerts to notify of; none if there is no such automation."""
    least = args.alerts or (_ALERTS if args.flow == FUSION.name else "none")
    return () if least == "none" else SEVERITIES[SEVERITIES.index(least) :]


def _zombie_after(args: argparse.Namespace, heartbeat_s: int | None) -> timedelta | None:
    if args.zombie_after is not None:
        return timedelta(seconds=args.zombie_after)
    return timedelta(seconds=_HEARTBEATS * heartbeat_s) if heartbeat_s is not None else None


def _placeholder(args: argparse.Namespace) -> NotificationBlock | None:
    """A placeholder for the block, which a dry run does not look up."""
    from uuid import UUID  # noqa: PLC0415 - see above

    from orchestrator_adapter.prefect_flow import automations as ready  # noqa: PLC0415 - see above

    if args.webhook is None and args.block is None:
        return None
    return ready.NotificationBlock(UUID(int=0), webhook=args.webhook is not None or args.block.startswith("webhook/"))


def _print_described(automation: AutomationCore) -> None:
    from orchestrator_adapter.prefect_flow.automations import describe  # noqa: PLC0415 - see above

    print_line(describe(automation))


def _done(args: argparse.Namespace, heartbeat_s: int | None) -> int:
    for sentence in unmet(args, heartbeat_s):
        print_problem(f"automations: {sentence}")
    return ExitCode.OK


def _announce_wait(why: str) -> None:
    announce("automations", "waiting_for_api", f"waiting for the Prefect API: {why}", cause=why)
