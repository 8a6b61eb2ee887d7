"""What the measurement on a GPU shows: tables as text, and the targets with what was found."""

from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[str]
KINDS = {"gb_per_s", "us", "host", "replay"}
"""What holds figures, each a median with quartiles."""


def heading(found: Mapping[str, Any]) -> str:
    """Return what is measured on, in a few lines."""
    lines = [", ".join(f"{name} {version}" for name, version in found["versions"].items())]
    lines += [f"{name}: {place}" for name, place in found["compilers"].items()]
    if "device" in found:
        one = found["device"]
        lines.insert(
            0,
            f"{one['name']}, capability {'.'.join(map(str, one['capability']))}, {one['multiprocessors']} "
            f"multiprocessors, {one['memory_mib']} MiB; driver {one['driver']}",
        )
    return "\n".join(lines)


def text_of(name: str, found: Mapping[str, Any]) -> str:
    """Return a section as text: a table where there are figures, else its entries."""
    if "compilers" in found:
        return heading(found)
    if "rows" in found:
        table = table_of(
            ("", "us", "bytes/param", "GB/s", "of copy", "x AdamW"), map(step_cells, found["rows"])
        )
        extra = f"at 52 bytes and the copy's bandwidth: {found['at_52_bytes_us']:.1f} us"
        failed = [f"{who} failed: {why}" for who, why in found["failed"].items()]
        return "\n".join([f"\n{name}: {found['parameters']:,} parameters", table, extra, *failed])
    if "targets" in found:
        cells = (
            (
                one["what"],
                f"{one['found']:.3g}",
                f"{one['bound']} {one['limit']:g}",
                "yes" if one["met"] else "NO",
            )
            for one in found["targets"]
        )
        return f"\n{name}\n{table_of(('', 'found', 'aimed at', 'met'), cells)}"
    if "summary" in found:
        not_passed = found.get("not_passed", [])
        return "\n".join([f"\n{name}: {found['summary']}", *not_passed, found["tail"]])
    if not KINDS.intersection(found):
        return "\n".join([f"\n{name}", *(f"  {what}: {told}" for what, told in found.items())])
    lines = [f"\n{name}"]
    for kind, of_kind in found.items():
        for label, value in of_kind.items():
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            lines += [f"  {kind} {label} {part}: {three_cells(figures)}" for part, figures in parts]
    return "\n".join(lines)


def step_cells(row: Mapping[str, Any]) -> Cells:
    """Return a row of the table of steps."""
    ratio = row["ratio_to_fused_adamw"]
    return (
        row["name"],
        f"{row['us'][0]:.1f}",
        f"{row['bytes_per_param']:g}",
        f"{row['gb_per_s']:.0f}",
        f"{row['share_of_copy'][0]:.2f}",
        f"{ratio[0]:.2f}" if ratio else "-",
    )


def three_cells(figures: Sequence[float]) -> str:
    """Return a median with its quartiles."""
    median, low, high = figures
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def table_of(heads: Cells, rows: Any) -> str:
    """Return aligned plain text."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[k].rjust(widths[k]) for k in range(1, len(heads)))])
        for line in lines
    )


def targets(sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was aimed at and what was found, as far as the sections tell it."""
    found: list[dict[str, Any]] = []

    def aim(what: str, value: float | None, bound: str, limit: float) -> None:
        if value is not None:
            met = value >= limit if bound == ">=" else value <= limit
            found.append({"what": what, "found": value, "bound": bound, "limit": limit, "met": met})

    large, resnet, tiny = (
        sections.get(f"steps {name}", {}) for name in ("bert-large", "resnet-50", "200-tiny")
    )
    lamb = row_called(large, "lamb")
    if lamb:
        aim(
            "BERT-large, Lamb: share of the copy's bandwidth at 40 bytes", lamb["share_of_copy"][0], ">=", 0.9
        )
        aim("BERT-large, Lamb over fused AdamW", (lamb["ratio_to_fused_adamw"] or [None])[0], "<=", 1.5)
        aim(
            "BERT-large, 52 bytes at the copy's bandwidth over Lamb",
            large["at_52_bytes_us"] / lamb["us"][0],
            ">=",
            1.2,
        )
    lamb = row_called(resnet, "lamb")
    if lamb:
        aim("ResNet-50, Lamb over 40 bytes at the copy's bandwidth", 1 / lamb["share_of_copy"][0], "<=", 1.3)
    lamb = row_called(tiny, "lamb-checked")
    if lamb:
        aim("200 tiny tensors, Lamb by default: microseconds on the GPU", lamb["us"][0], "<=", 40)
    host = sections.get("host 200-tiny", {}).get("host", {}).get("lamb-checked")
    if host:
        aim("200 tiny tensors, Lamb by default: microseconds on the host", host["reused_us"][0], "<=", 60)
    replay = sections.get("graph 200-tiny", {}).get("replay", {}).get("lamb-checked")
    if replay:
        aim("200 tiny tensors, Lamb by default: microseconds of a replay", replay["device_us"][0], "<=", 15)
    return found


def row_called(section: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return one optimizer's row of a section, None where there is none."""
    return next((row for row in section.get("rows", ()) if row["name"] == name), None)
