"""The page that shows mounts to a browser: plain HTML, charts as SVG, readable without JavaScript."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape

from s3mount.monitor.history import History, Rates
from s3mount.status import (
    Conflict,
    PendingChange,
    Snapshot,
    advice_on,
    describe_honours,
    describe_past,
    describe_pending,
    size_text,
)

CHART_WIDTH, CHART_HEIGHT = 240, 36
REFRESH_S = 5
PHASES = {
    "serving": "mounted",
    "ending": "ending: it sends what is left",
    "draining": "unmounted: it sends what is left",
    "dead": "its process is gone",
    "silent": "its process does not answer",
    "unknown": "its process cannot be asked",
    "ended": "ended, with changes kept for the next mount",
    "lost": "its process was killed, with changes kept for the next mount",
}
BAD_PHASES = ("dead", "silent", "lost")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0362c; --good: #2e7d32; --ink: #1f6feb; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
section { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
  border-top: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
td:first-child, td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
figure { margin: 0; }
.bad { color: var(--bad); } .good { color: var(--good); } .dim { opacity: .7; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: .6rem 0; }
svg { display: block; } svg path { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg line { stroke: var(--line); }
"""

SCRIPT = f"""
const main = document.querySelector("main");
async function again() {{
  try {{
    const answer = await fetch("mounts", {{cache: "no-store"}});
    if (!answer.ok) throw new Error(answer.status);
    main.innerHTML = await answer.text();
    document.title = main.querySelector(".bad") ? "! s3mount" : "s3mount";
  }} catch (error) {{
    document.title = "? s3mount";
  }}
  setTimeout(again, {REFRESH_S * 1000});
}}
setTimeout(again, {REFRESH_S * 1000});
"""


def page(mounts: Sequence[Snapshot], history: History) -> str:
    """The whole page. Without JavaScript the browser loads it anew."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>s3mount</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>'
        '<link rel="stylesheet" href="style.css"><script src="live.js" defer></script></head>'
        f"<body><h1>s3mount</h1><main>{sections(mounts, history)}</main>"
        '<p class="dim"><a href="metrics">metrics</a> for Prometheus</p></body></html>'
    )


def sections(mounts: Sequence[Snapshot], history: History) -> str:
    """What changes of it: a section for each mount."""
    if not mounts:
        return "<p>No bucket is mounted.</p>"
    return "".join(_section(each, history.rates(each.mountpoint)) for each in mounts)


def _section(mount: Snapshot, rates: Sequence[Rates]) -> str:
    is_well = mount.phase not in BAD_PHASES
    phase = f'<span class="{"good" if is_well else "bad"}">{escape(PHASES[mount.phase])}</span>'
    head = f"<h2>{escape(mount.mountpoint)}</h2><div>{escape(mount.source)} &middot; {phase}</div>"
    parts = [head]
    if mount.paused:
        parts.append(f"<p>Uploads are paused: s3mount resume {escape(mount.mountpoint)}</p>")
    if mount.outage:
        parts.append(f'<p class="bad">S3 cannot be reached: {escape(mount.outage)}</p>')
    if mount.phase in ("serving", "ending", "draining"):
        what = describe_past(mount.past) if mount.past else describe_pending(mount)
        parts.append(f"<p>{escape(what)}</p>{_charts(rates)}{_room(mount)}")
    parts.append(_pending(mount.pending.list, mount.pending.changes))
    parts.append(_conflicts(mount.conflicts))
    parts.append(_missing(mount))
    if mount.store_honours:
        told = describe_honours(mount.store_honours, mount.versioning)
        parts.append("".join(f'<p class="dim">S3 {escape(line)}</p>' for line in told))
    return f"<section>{''.join(parts)}</section>"


def _charts(rates: Sequence[Rates]) -> str:
    charts = (
        _chart("to S3", [each.sent_bytes for each in rates], lambda v: f"{size_text(v)}/s"),
        _chart("from S3", [each.received_bytes for each in rates], lambda v: f"{size_text(v)}/s"),
        _chart("requests", [each.requests for each in rates], lambda v: f"{v:.1f}/s"),
    )
    return f'<div class="charts">{"".join(charts)}</div>'


def _chart(name: str, values: Sequence[float], text: Callable[[float], str]) -> str:
    most = max(values, default=0.0)
    told = f"{text(values[-1])} (most {text(most)})" if values else "no sample yet"
    path = ""
    if len(values) > 1:
        step = CHART_WIDTH / (len(values) - 1)
        high = CHART_HEIGHT - 2
        points = (
            f"{number * step:.1f},{CHART_HEIGHT - 1 - (value / most * high if most else 0):.1f}"
            for number, value in enumerate(values)
        )
        path = f'<path d="M{" L".join(points)}"/>'
    return (
        f"<figure><figcaption>{name}: {escape(told)}</figcaption>"
        f'<svg role="img" aria-label="{name}" width="{CHART_WIDTH}" height="{CHART_HEIGHT}">'
        f'<line x1="0" x2="{CHART_WIDTH}" y1="{CHART_HEIGHT - 1}" y2="{CHART_HEIGHT - 1}"/>{path}</svg></figure>'
    )


def _room(mount: Snapshot) -> str:
    spool, cache = mount.spool, mount.cache
    told = []
    if spool.get("max_bytes"):
        told.append(f"spool {size_text(spool['used_bytes'])} of {size_text(spool['max_bytes'])}")
    if spool.get("disk_free_bytes") is not None:
        told.append(f"{size_text(spool['disk_free_bytes'])} free on its disk")
    if cache.get("cache_bytes_max"):
        told.append(
            f"cache {size_text(cache['cache_bytes'])} of {size_text(cache['cache_bytes_max'])}"
        )
    reads = cache.get("cache_hits", 0) + cache.get("cache_misses", 0)
    if reads:
        told.append(f"{cache['cache_hits'] / reads:.0%} of {reads:,} reads from the cache")
    return f'<p class="dim">{escape(" · ".join(told))}</p>' if told else ""


def _pending(changes: Sequence[PendingChange], count: int) -> str:
    rows = (
        (
            change.key,
            size_text(change.size),
            _age(change.changed_at_ns),
            f"{change.state}, {change.attempts} tries" if change.attempts else change.state,
            " — ".join(part for part in (change.error or "", advice_on(change)) if part),
        )
        for change in changes
    )
    table = _table(("not in S3 yet", "size", "age", "state", "why, and what to do"), rows)
    more = count - len(changes)
    return f"{table}<p>and {more:,} more</p>" if table and more > 0 else table


def _conflicts(conflicts: Sequence[Conflict]) -> str:
    rows = (
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.at_ns / 1e9)),
            each.key,
            each.outcome,
            each.kept_as,
        )
        for each in reversed(conflicts)
    )
    return _table(("conflict at", "key", "outcome", "yours is kept as"), rows)


def _missing(mount: Snapshot) -> str:
    rows = ((each.path, each.version_id or "", each.why) for each in mount.missing.list)
    return _table(("cannot be read", "version", "why"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    titles = "".join(f"<th>{escape(each)}</th>" for each in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _age(at_ns: int) -> str:
    """How long ago, in the largest unit that leaves a number from 1 on."""
    if not at_ns:
        return ""
    seconds = max(time.time() - at_ns / 1e9, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
