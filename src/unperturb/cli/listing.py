"""``unperturb list``."""

from __future__ import annotations

import click

from unperturb.cli.options import echo_json


@click.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def listing(kind: str | None, as_json: bool) -> int:
    """List what there is by name: attacks, suites, presets, networks.

    \b
    Example:
      unperturb list attacks
    """
    from unperturb.attacks import LOSSES, SUITES, attack_names
    from unperturb.audit.plan import ATTACKERS
    from unperturb.decisions import DECISIONS
    from unperturb.detectors import DETECTORS
    from unperturb.errors import unknown_name
    from unperturb.networks.registry import network_names
    from unperturb.presets import preset_names
    from unperturb.purifiers import PURIFIERS
    from unperturb.stages import registered
    from unperturb.threat import NORMS
    from unperturb.training import OBJECTIVES

    found = {
        "attacks": attack_names(),
        "suites": [f"{name}: {', '.join(suite.attacks)}" for name, suite in SUITES.items()],
        "attackers": list(ATTACKERS),
        "losses": list(LOSSES),
        "norms": list(NORMS),
        "presets": preset_names(),
        "purifiers": list(registered("purifiers", PURIFIERS)),
        "detectors": list(registered("detectors", DETECTORS)),
        "decisions": list(registered("decisions", DECISIONS)),
        "networks": list(network_names()),
        "objectives": list(OBJECTIVES),
        "data": ["digits", "FILE.parquet", "FOLDER", "owner/name"],
    }
    if kind is not None:
        if kind not in found:
            raise unknown_name("kind", kind, found)
        found = {kind: found[kind]}
    if as_json:
        echo_json(found)
        return 0
    for name, members in found.items():
        click.echo(name)
        for member in members:
            click.echo(f"  {member}")
    return 0
