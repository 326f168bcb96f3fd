"""Networks and thresholds of defenses on a reproduction's page."""

from __future__ import annotations

from typing import Any

from unperturb.recipes.words import Record

__all__ = ["networks_part", "thresholds_part"]


def networks_part(record: Record) -> list[str]:
    """Networks: where they come from, their settings, their last figures."""
    lines = ["## Networks of the defenses", ""]
    for name, facts in sorted(record["networks"].items()):
        told = ", ".join(_settings(facts["network"]))
        trained = f", {facts['config']['epochs']} epochs" if facts.get("config") else ""
        served = f", for the classifier {facts['model']}" if facts["model"] else ""
        began = f", from {facts['start']}" if facts["start"] else ""
        lines.append(
            f"- **{name}**: {facts['title']}; {facts['kind']}, {facts['from']} "
            f"`{facts['name']}`{served}{began} ({told}){trained}, fingerprint "
            f"`{facts['fingerprint'][:16]}`"
        )
        figures = [_figure(*item) for item in sorted(facts["figures"].items())]
        if figures:
            lines.append(f"    - {', '.join(figures)}")
    return [*lines, ""]


def _settings(network: Any) -> list[str]:
    plain = (str, int, float)
    return [
        f"{key.replace('_', ' ')} {'x'.join(map(str, v)) if isinstance(v, list) else v}"
        for key, v in sorted(network.items())
        if isinstance(v, plain) or (isinstance(v, list) and v and isinstance(v[0], int))
    ]


def _figure(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if name.endswith("psnr"):
        return f"{words} {value:.2f} dB"
    share = any(part in name for part in ("clean", "attacked", "denoised"))
    return f"{words} {value:.1%}" if share else f"{words} {value:.3g}"


def thresholds_part(record: Record) -> list[str]:
    """Thresholds: on what they were fitted."""
    lines = ["## Thresholds", ""]
    for name, facts in sorted(record["thresholds"].items()):
        fitted = facts["fitted_on"]
        options = ", ".join(f"{key} {value}" for key, value in facts["options"].items())
        lines.append(
            f"- **{name}**: {facts['threshold']:.4g}, {facts['statistic']}, the "
            f"{fitted['quantile']:.1%} quantile of {fitted['images']['count']:,} clean images "
            f"({fitted['split']}); purifier {facts['purifier']['name']}"
            + (f" ({options})" if options else "")
        )
    return [*lines, ""]
