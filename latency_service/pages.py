"""Pages of the dashboard from templates; how numbers and times are written in them; what a browser may do with them."""

import math
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from latency_service.status import ASKED, ago, condition

ABSENT = "–"

# Nothing but what this service itself serves is loaded, run, framed or sent anywhere; nothing in a page's text is run.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def milliseconds(value: float, *, digits: int = 3) -> str:
    """So many significant digits, never in powers of ten."""
    decimals = max(0, digits - 1 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def finely(value: float) -> str:
    """Where the ends of an interval have to be told apart."""
    return milliseconds(value, digits=5)


def half_width(percent_of_it: float) -> str:
    return f"{percent_of_it:.1f}" if percent_of_it >= 0.1 else f"{percent_of_it:.2f}"


def reading(value: object) -> str:
    """Of a device's state."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ABSENT if value is None else str(value)


def celsius(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f} °C"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def short(sha256: str) -> str:
    return sha256[:12]


def age(at: datetime, now: datetime) -> str:
    """How long ago, or how long still."""
    return f"{ago(now - at)} ago" if at <= now else f"in {ago(at - now)}"


def render(template: str, *, now: datetime, **values: Any) -> str:
    return _ENVIRONMENT.get_template(template).render(now=now, **values)


_ENVIRONMENT = Environment(
    loader=PackageLoader("latency_service", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "ms": milliseconds, "finely": finely, "half_width": half_width, "reading": reading, "celsius": celsius,
    "percent": percent, "moment": moment, "short": short, "age": age,
}  # fmt: skip
_ENVIRONMENT.globals |= {"condition": condition, "asked": ASKED}
