#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what `harvest bench kv`, `link`, `moe`, `owner` and `reclaim`, and `harvest policy`, answer with `--json`.

    harvest bench link --system dgx-h100 --json > link.json
    python3 benchmarks/plot.py link.json

Each FILE.json becomes FILE.png: times to the first token, bandwidth against size, tokens a second against the share
of experts that is local, harvested memory against harm, reclaim time against bytes, or hit ratio against capacity.
Needs matplotlib (python3-matplotlib on Debian and Ubuntu).
"""

import argparse
import json
import math
import pathlib
import sys

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MOST_NAMED_LINES = 12  # more do not fit into a legend


class BadInput(Exception):
    """What is wrong with a file, for people."""


def size_name(bytes_, _position=None):
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:g} {name}"
    return f"{bytes_:g} B"


def device_name(device):
    return "host" if device == -1 else f"GPU {device}"


def read(path):
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from error
    if not isinstance(result, dict) or result.get("benchmark") not in DRAWERS:
        raise BadInput(f"{path}: not the JSON of harvest {COMMANDS}")
    rows = ROWS.get(result["benchmark"], "rows")
    if not result.get(rows):
        raise BadInput(f"{path}: no {rows} to draw")
    return result


def title_of(result, what):
    notes = []
    if result["simulated"]:
        notes.append("SIMULATED")
    if result["loopback"]:
        notes.append("LOOPBACK on one GPU")
    note = f" ({', '.join(notes)})" if notes else ""
    return f"{what}\n{result['system']}{note}"


def size_axis(axes, sizes):
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(size_name)
    axes.set_xticks(sorted(set(sizes)))
    axes.tick_params(axis="x", rotation=45)
    axes.grid(True, which="major", alpha=0.3)


def direction(row):
    if row["from"] == -1:
        return "host to GPU"
    return "GPU to host" if row["to"] == -1 else "GPU to GPU"


def draw_link(result, axes):
    lines = {}
    for row in result["rows"]:
        lines.setdefault((row["from"], row["to"], row["method"]), []).append(row)
    named = len(lines) <= MOST_NAMED_LINES
    groups = {}
    for (from_, to, method), rows in sorted(lines.items()):
        rows.sort(key=lambda row: row["bytes"])
        group = f"{direction(rows[0])}, {method}"
        style = {"marker": "." if method == "copy_engine" else "x", "linewidth": 1}
        if named:
            style["label"] = f"{device_name(from_)} to {device_name(to)}, {method}"
        else:
            if group not in groups:
                groups[group] = f"C{len(groups)}"
                style["label"] = group
            style["color"] = groups[group]
        sizes = [row["bytes"] for row in rows]
        rates = [row["bytes_per_s"] / 1e9 for row in rows]
        line = axes.plot(sizes, rates, **style)[0]
        axes.fill_between(
            sizes,
            [row["bytes_per_s_min"] / 1e9 for row in rows],
            [row["bytes_per_s_max"] / 1e9 for row in rows],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    size_axis(axes, [row["bytes"] for row in result["rows"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size of one copy")
    axes.set_ylabel("GB/s (median; shaded: least to most)")
    axes.set_title(title_of(result, "Bandwidth of each link"))


def draw_reclaim(result, axes):
    for index, load in enumerate(("idle", "busy")):
        rows = sorted((row for row in result["rows"] if row["load"] == load), key=lambda row: row["bytes"])
        if not rows:
            continue
        sizes = [row["bytes"] for row in rows]
        for key, style in (("p50", "-"), ("p99", "--")):
            times = [row[f"reclaim_ns_{key}"] / 1e6 for row in rows]
            axes.plot(sizes, times, style, marker=".", color=f"C{index}", label=f"owner {load}, {key}")
    size_axis(axes, [row["bytes"] for row in result["rows"]])
    axes.set_yscale("log")
    axes.set_xlabel("bytes that the owner asks for")
    axes.set_ylabel("ms until the device shows them free")
    axes.set_title(title_of(result, "From an owner's request to its memory"))


def draw_owner(result, axes):
    lines = {}
    for row in result["rows"]:
        lines.setdefault((row["mode"], row["rise"]), []).append(row)
    named = set()  # lines come close where nobody was harmed: one name of a reserve is enough there
    for index, ((mode, rise), rows) in enumerate(sorted(lines.items())):
        rows.sort(key=lambda row: row["reserve_bytes"])
        name = f"{mode}, rises {rise.replace('_', ' ')}"
        style = {"marker": "osv^"[index % 4], "edgecolor": f"C{index}"}
        axes.plot(
            [row["failed_per_owner_hour_at_most"] for row in rows],
            [row["percent_of_idle"] for row in rows],
            linewidth=1,
            alpha=0.4,
            color=f"C{index}",
        )
        for row in rows:
            x, y = row["failed_per_owner_hour_at_most"], row["percent_of_idle"]
            unseen = row["failed_rises"] == 0
            label = f"{name}: none failed" if unseen else name
            axes.scatter(x, y, label=label, facecolor="none" if unseen else f"C{index}", **style)
            place = (round(math.log(x), 1), row["reserve_bytes"])
            if place not in named:
                named.add(place)
                reserve = size_name(row["reserve_bytes"])
                axes.annotate(reserve, (x, y), xytext=(6, -3), textcoords="offset points", fontsize="x-small")
    axes.set_xscale("log")
    axes.grid(True, which="major", alpha=0.3)
    axes.set_ylim(0, 105)
    axes.set_xlabel("rises that fail because of the cache, per owner-hour: at most, with 95 % confidence")
    axes.set_ylabel("harvested, % of idle memory")
    hours = result["owners"]["owner_hours"]
    axes.set_title(title_of(result, f"What harvesting does to owners, {hours:g} owner-hours, by reserve"))


def draw_policy(result, axes):
    lines = {}
    for row in result["results"]:
        lines.setdefault(row["policy"], []).append(row)
    for index, (policy, rows) in enumerate(lines.items()):
        rows.sort(key=lambda row: row["capacity_blocks"])
        capacities = [row["capacity_blocks"] for row in rows]
        for key, style, name in (("hit_ratio", "-", policy), ("usable_hit_ratio", "--", f"{policy}, usable")):
            ratios = [row[key] for row in rows]
            axes.plot(capacities, ratios, style, marker=".", linewidth=1, color=f"C{index}", label=name)
    axes.set_xscale("log")
    axes.grid(True, which="major", alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("blocks that fit")
    axes.set_ylabel("hits, share of accesses (usable: and all blocks before it in its request)")
    axes.set_title(f"Eviction policies\n{pathlib.PurePath(result['trace']).name}")


def draw_moe(result, axes):
    cases = sorted(result["cases"], key=lambda case: case["local_fraction"])
    lines = {}
    for case in cases:
        for answer in case["results"]:
            if "absent" in answer:
                continue
            point = case["local_fraction"], answer["tokens_per_s"]
            lines.setdefault(answer["strategy"], []).append(point)
            if answer["strategy"] == "harvest":
                bound = case["local_fraction"], answer["bound_tokens_per_s"]
                lines.setdefault("bound of harvest", []).append(bound)
    for strategy, points in lines.items():
        # What does not hang on the fraction, and what nobody can have, stay behind what can be had.
        style = {"marker": ".", "color": STRATEGY_COLORS.get(strategy)}
        if strategy in ("all_local", "expert_parallel", "bound of harvest"):
            style = {"linestyle": "--", "linewidth": 1, "color": STRATEGY_COLORS.get(strategy)}
        axes.plot(*zip(*points), label=strategy, **style)
    axes.set_yscale("log")
    axes.grid(True, which="major", alpha=0.3)
    axes.set_xlabel("share of the experts that is local")
    axes.set_ylabel("tokens/s")
    what = f"{result['model']}, {result['phase']}, batch {cases[0]['batch']}"
    axes.set_title(title_of(result, what), fontsize="medium")


def draw_bars(axes, results, name, key):
    """Percentiles of each result, side by side."""
    for index, percentile in enumerate(("p50", "p90", "p99")):
        places = [place + 0.27 * (index - 1) for place in range(len(results))]
        axes.bar(places, [one[key][percentile] / 1e3 for one in results], 0.25, label=percentile)
    axes.set_xticks(range(len(results)))
    axes.set_xticklabels([f"{one[name]}\n{one['tokens_per_s']:.0f} tokens/s" for one in results])
    axes.set_yscale("log")
    axes.grid(True, axis="y", which="major", alpha=0.3)
    axes.set_ylabel("s to the first token")


def draw_kv_serve(result, axes):
    draw_bars(axes, result["results"], "strategy", "ttft_ms")
    bound = result["results"][0]["bound"]["ttft_ms_p90"] / 1e3
    axes.axhline(bound, linestyle="--", linewidth=1, color="C9", label="bound, p90")
    what = f"{result['model']}, {result['requests']} requests, {result['rate']:g} times as fast"
    axes.set_title(title_of(result, what))


def draw_kv_turns(result, axes):
    draw_bars(axes, result["results"], "mode", "ttft_ms")
    what = f"{result['model']}, {result['rate']:g} sequences a second, turns of {result['turn_tokens']} tokens"
    axes.set_title(title_of(result, what))


STRATEGY_COLORS = {
    "all_local": "C7",
    "expert_parallel": "C8",
    "host": "C3",
    "static_peer": "C1",
    "harvest": "C0",
    "bound of harvest": "C9",
}
DRAWERS = {
    "kv_serve": draw_kv_serve,
    "kv_turns": draw_kv_turns,
    "link": draw_link,
    "moe": draw_moe,
    "owner": draw_owner,
    "policy": draw_policy,
    "reclaim": draw_reclaim,
}
COMMANDS = "bench kv serve, bench kv turns, bench link, bench moe, bench owner, bench reclaim or policy"
ROWS = {"kv_serve": "results", "kv_turns": "results", "moe": "cases", "policy": "results"}


def panels_of(result):
    """What is drawn side by side: of `moe` a panel for each batch."""
    if result["benchmark"] != "moe":
        return [result]
    batches = sorted({case["batch"] for case in result["cases"]})
    return [{**result, "cases": [case for case in result["cases"] if case["batch"] == batch]} for batch in batches]


def draw(result, path):
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    # The same input gives the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "harvest", "svg.fonttype": "none"})
    from matplotlib import pyplot

    panels = panels_of(result)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (9, 5.5) if len(panels) == 1 else (11, 4 * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for panel, axes in zip(panels, grid.flat):
        DRAWERS[panel["benchmark"]](panel, axes)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles))  # each name once
        axes.legend(unique.values(), unique.keys(), fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="+", type=pathlib.Path, help="JSON of a benchmark")
    parser.add_argument("--out", metavar="FOLDER", type=pathlib.Path, help="where pictures go; else beside the JSON")
    parser.add_argument("--svg", action="store_true", help="FILE.svg instead of FILE.png")
    arguments = parser.parse_args()
    try:
        if arguments.out and not arguments.out.is_dir():
            raise BadInput(f"--out: {arguments.out} is not a folder")
        results = [(path, read(path)) for path in arguments.files]
        for path, result in results:
            picture = (arguments.out or path.parent) / (path.stem + (".svg" if arguments.svg else ".png"))
            try:
                draw(result, picture)
            except (KeyError, TypeError) as error:
                raise BadInput(f"{path}: a field is missing or is of another kind: {error}") from error
            except OSError as error:
                raise BadInput(f"{picture}: {error.strerror}") from error
            print(picture)
    except ImportError:
        print("plot.py: matplotlib is missing: install python3-matplotlib", file=sys.stderr)
        return 2
    except BadInput as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
