"""Pages that a browser opens from disk, and how numbers are written in them and on a terminal."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from search_client.analyses import Estimate, Spread
from search_client.durable_files import write_text

ABSENT = "–"
LONGEST_WRITTEN_OUT = 10**9  # sizes from here on are powers of ten
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_page(path: Path, template: str, **values: Any) -> None:
    environment = Environment(
        loader=PackageLoader("search_client", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "seconds": seconds, "size": size, "estimate": estimate}
    write_text(path, environment.get_template(template).render(**values))


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"


def seconds(duration_s: float | None) -> str:
    """Seconds, and from ten minutes on also what people call it."""
    if duration_s is None:
        return ABSENT
    if duration_s < 600:
        return f"{duration_s:.1f} s" if duration_s < 10 else f"{duration_s:.0f} s"
    if duration_s < 7200:
        return f"{duration_s:,.0f} s ({duration_s / 60:.0f} min)"
    return f"{duration_s:,.0f} s ({duration_s / 3600:.1f} h)"


def size(architectures: int) -> str:
    """Of a search space."""
    if architectures < LONGEST_WRITTEN_OUT:
        return f"{architectures:,}"
    digits, _, exponent = f"{architectures:.2e}".partition("e+")
    return f"{digits}·10{str(int(exponent)).translate(SUPERSCRIPT)}"


def estimate(found: Estimate | None) -> str:
    return ABSENT if found is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def spread(over_runs: Spread | None, *, scale: float = 1.0, decimals: int = 2) -> str:
    """Mean ± standard deviation; the mean alone where there is one run."""
    if over_runs is None:
        return ABSENT
    mean = f"{scale * over_runs.mean:,.{decimals}f}"
    return mean if over_runs.deviation is None else f"{mean} ±{scale * over_runs.deviation:,.{decimals}f}"
