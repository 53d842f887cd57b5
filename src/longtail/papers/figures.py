"""The paper's style, one fixed look for everything that has a name, and figures saved with their
numbers and sources.
"""

import io
import json
import textwrap
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import is_color_like
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from longtail.papers import inference
from longtail.papers.printed import IN_WORDS
from longtail.pick.samplers import SAMPLERS
from longtail.store import paths, runs

SINGLE, DOUBLE = 3.4, 7.0  # inches, width of one and of two columns of a printed page
GAP = 2  # white pixels between two thumbnails
STYLE = {
    "figure.figsize": (SINGLE, 2.5),
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # text stays text (TrueType), as journals ask
}


# What notebooks' columns hold, in words: names with a look of their own stand below, those of
# samplers in their records
WORDS = {
    **IN_WORDS,
    "long_tail": "long-tailed list",
    "balanced": "balanced list",
    "coverage": "coverage (cosine)",
    "nearest_pick_distance": "distance to the nearest\nother pick (cosine)",
    "seed_distance": "distance to the\nnearest seed image",
    "covering_radius": "covering radius",
    "loss": "sum of ECLE",
    "updates": "equal updates",
    "epochs": "equal epochs",
    "overhead": "random picks, trained longer",
    "none": "seed alone",
    "precision bfloat16_gpu": "bfloat16 on a GPU",
    "precision bfloat16": "bfloat16",
}


def _look(**names):
    """Words, colour, marker and dash of every name; by the words, as keywords for seaborn's ``hue``
    and ``style``.

    A colour is any of matplotlib's, or its place in seaborn's `colorblind`. The words join WORDS.
    """
    for name, (words, colour, marker) in names.items():
        alike = [other for other, (known, *_) in names.items() if known == words]
        if not words or len(alike) > 1:
            raise ValueError(f"{', '.join(alike)}: called {words!r}; give each words of its own")
        drawn = isinstance(colour, int) or is_color_like(colour)
        if not drawn or marker not in Line2D.filled_markers:
            raise ValueError(
                f"{name}: {colour!r} is no colour, or {marker!r} no filled marker, of Matplotlib"
            )
    WORDS.update({name: words for name, (words, *_) in names.items()})
    colours = sns.color_palette("colorblind")
    dashes = [
        (),
        (4, 1.5),
        (1, 1),
        (5, 1, 1, 1),
        (3, 1),
        (6, 2),
        (2, 1, 1, 1),
        (1, 2),
        (8, 2, 1, 2),
        (4, 1, 4, 2),
        (2, 2),
        (7, 1, 1, 1),
        (1, 3),
        (9, 3),
    ]
    return {
        "palette": {
            words: colours[colour] if isinstance(colour, int) else colour
            for words, colour, _ in names.values()
        },
        "markers": {words: marker for words, _, marker in names.values()},
        "dashes": {words: dash for (words, *_), dash in zip(names.values(), dashes, strict=False)},
    }


# sns.lineplot(rows, x=…, y=…, hue="method", style="method", **figures.METHOD); a bar plot takes
# palette=figures.METHOD["palette"]
METHOD = _look(
    simclr=("SimCLR", 0, "o"),
    sdclr=("SDCLR", 3, "s"),
    simsiam=("SimSiam", 1, "^"),
    bcl=("BCL", 2, "D"),
    gh=("GH", 4, "v"),
    colt=("COLT", "#999933", "P"),
    two_stage=("GH's rates alone", 7, "X"),
    focal=("focal loss", 5, "<"),
    ts=("TS", "#117733", "h"),
    supervised=("trained on labels", 9, "d"),
    rwsam=("rwSAM", "#aa4499", "p"),
    untrained=("untrained", "0.3", ">"),
    rwsam_oracle=("rwSAM, true sizes", "#882255", "*"),
)
SAMPLER = _look(
    none=("seed alone", 7, "o"),
    **{name: (record.wording, record.colour, record.marker) for name, record in SAMPLERS.items()},
    colt=("COLT", "#332288", "p"),
)
LOSS = _look(
    ce=("cross-entropy", 7, "o"),
    focal=("focal loss", 7, "X"),
    cb=("class-balanced weights", 1, "s"),  # families
    cb_weighted=("the same, weighted mean", 1, "D"),
    resampling=("re-sampling", "#332288", "P"),  # share a colour
    ce_drw=("deferred weights", 5, "v"),
    ldam=("LDAM", 2, "^"),
    ldam_drw=("LDAM-DRW", 2, "v"),
    posthoc_la=("post-hoc adjustment", 9, "o"),
    la=("logit adjustment", 0, "o"),
    cdt=("CDT", 4, "s"),
    vs=("VS", 4, "D"),
    ddc=("DDC", 3, "X"),
    smote=("SMOTE", 6, "p"),
    cog_os=("COG-OS", 6, "h"),
)
VERDICT = _look(
    **{
        name: (name, *look)
        for name, look in {
            "supported": (0, "o"),
            "contradicted": (3, "X"),
            "smaller": (1, "v"),
            "undecided": (7, "s"),
            "not tested": ("0.35", "D"),
        }.items()
    }
)
GROUP = _look(
    many=("many", "#003f7d", "o"),
    medium=("medium", "#00806a", "s"),
    few=("few", "#e07b00", "^"),
    all=("all", "0.55", "D"),
    outsider=("outsiders", "black", "X"),
)  # dark to light, so that prints in grey tell them apart, too


def word(name):
    """The words for a name of the results: "sdclr+bcl" is SDCLR + BCL, "vs gamma=0.15" VS, gamma
    0.15; one without words stays.
    """
    head, *settings = str(name).split(" ") if ", " not in str(name) else str(name).split(", ")
    words = " + ".join(WORDS.get(part, part) for part in head.split("+"))
    return ", ".join(
        [words, *(WORDS.get(text, text.replace("=", " ").replace("_", " ")) for text in settings)]
    )


def worded(rows, *columns):
    """The rows with words in these columns, in place of names."""
    return rows.assign(**{column: rows[column].map(word) for column in columns})


def look(kind, words, style=False):
    """Keywords for seaborn that give each of these ``words``, any column, its fixed look in METHOD,
    SAMPLER or LOSS, in the fixed order.

    SDCLR + BCL has the colour of its last part, SimCLR, 3-layer head a lighter shade of SimCLR's;
    others have the colours left over. With ``style`` markers come as a mapping, as line plots want
    them.
    """
    others = sorted(set(words) - set(kind["palette"]))
    order = [name for name in kind["palette"] if name in set(words)] + others
    spare = zip(others, sns.color_palette("colorblind")[4:] * 9, "H8>*h" * 9, strict=False)
    more = {}
    for name, colour, marker in spare:
        base, _, setting = name.split(" + ")[-1].partition(", ")
        colour = kind["palette"].get(base, colour)
        more[name] = (sns.blend_palette([colour, "white"], 9)[4] if setting else colour, marker)
    markers = {name: kind["markers"].get(name) or more[name][1] for name in order}
    return {
        "hue_order": order,
        "palette": {name: kind["palette"].get(name) or more[name][0] for name in order},
        "markers": markers if style else list(markers.values()),
    }


def interval(values):
    """The 95 % t interval of the mean of paired differences, as seaborn's ``errorbar``; of one it
    is unknown, (NaN, NaN).
    """
    return inference.mean(values).interval


def use_paper_style():
    """Make every later figure look like the others: 8 pt, colour-blind-safe, single column unless
    told otherwise.
    """
    warnings.filterwarnings(
        "ignore", "The figure layout has changed to tight"
    )  # seaborn's grids lay themselves out
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=STYLE)


def at_width(grid, height, width=DOUBLE, columns=6):
    """Give a seaborn grid a column's width (inches), its legend in lines of so many ``columns``
    above it, without a title.
    """
    grid.figure.set_size_inches(width, height)
    grid.figure.set_layout_engine("constrained")
    if grid.legend:
        sns.move_legend(
            grid, "outside upper center", ncols=min(columns, len(grid.legend.texts)), title=None
        )


def log_ticks(*axes):
    """Logarithmic x or y axes with plain numbers: 1, 2, 5, 10, …, fewer where the axis is long."""
    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high < 60 * low else (1, 3) if high < 1000 * low else (1,))
        )
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")


def save(figure, name, rows, folder, caption):
    """Write ``<name>.pdf``, ``.png`` (200 dpi) and ``.csv``, exactly the plotted rows, into a
    profile's figure folder.

    The caption (what is shown, n, what the bars are), the runs (column ``run``, if there is one),
    the commits they were trained at and the digest of the rows sit inside both files as JSON (PDF
    Keywords, PNG Description), no date does: equal rows give equal bytes. Raises ``ValueError``
    when there are no rows.
    """
    if not len(rows):
        raise ValueError(f"figure {name} has no rows to show; make the runs it needs first")
    table = rows.to_csv(index=False)
    source = json.dumps(
        {
            "figure": name,
            "caption": caption,
            "rows": runs.sha256(table.encode()),
            "runs": _commits(rows),
        },
        sort_keys=True,
    )
    for suffix, options in {
        "pdf": {"metadata": {"Keywords": source, "CreationDate": None}},
        "png": {"metadata": {"Description": source}, "dpi": 200},
    }.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, **options)
        runs.write(folder / f"{name}.{suffix}", drawn.getvalue())
    runs.write(folder / f"{name}.csv", table)


def _commits(rows):
    """The commit every plotted run was trained at, from its ``done.json``."""
    names = sorted(set(rows["run"].dropna())) if "run" in rows else []
    done = {name: paths.inside(paths.RESULTS / "runs", name) / "done.json" for name in names}
    return {
        name: runs.read_record(file).get("commit", "unknown") if file.exists() else "unknown"
        for name, file in done.items()
    }


def image_grid(rows, columns=16, captions=None):
    """Picture grids with a title each, one under the other, at two columns' width: title -> uint8
    images (n, 3, s, s), as array or tensor.

    More than ``columns`` images wrap into further lines. ``captions`` maps a title to one short
    text per image, printed on the images.
    """
    sheets = {title: _sheet(np.asarray(images), columns) for title, images in rows.items()}
    heights = [
        DOUBLE * sheet.shape[0] / sheet.shape[1] + 0.26 for sheet in sheets.values()
    ]  # inches; 0.26 holds the title
    figure, axes = plt.subplots(
        len(sheets), squeeze=False, figsize=(DOUBLE, sum(heights)), height_ratios=heights
    )
    for axis, (title, sheet) in zip(axes.flat, sheets.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(title, loc="left", pad=3, fontweight="bold")
        axis.set_axis_off()
        axis.set_anchor("W")
        _caption(axis, (captions or {}).get(title, []), rows[title].shape[-1] + GAP, columns)
    return figure


def _sheet(images, columns):
    """One white sheet (height, width, 3) uint8 with the images in reading order."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(
            f"a row of pictures is uint8 (n, 3, s, s) with n > 0, not {images.dtype} {images.shape}"
        )
    count, _, height, width = images.shape
    lines = -(-count // columns)
    cells = np.full((lines * columns, height + GAP, width + GAP, 3), 255, np.uint8)
    cells[:count, :height, :width] = images.transpose(0, 2, 3, 1)
    sheet = cells.reshape(lines, columns, height + GAP, width + GAP, 3).swapaxes(1, 2)
    return sheet.reshape(lines * (height + GAP), columns * (width + GAP), 3)[:-GAP, :-GAP]


def _caption(axis, texts, cell, columns):
    """Short texts in the lower left corners of the images, readable on any picture."""
    for place, text in enumerate(texts):
        line, column = divmod(place, columns)
        axis.text(
            column * cell,
            (line + 1) * cell - GAP - 1,
            textwrap.shorten(str(text), 12, placeholder="…"),
            fontsize=4.5,
            color="white",
            va="bottom",
            bbox={"facecolor": "black", "alpha": 0.6, "pad": 0.6, "linewidth": 0},
        )


def aligned(checked):
    """The directions that have an interval, turned so that right is as claimed; with a short
    ``label``. Rows as ``claims.judged``.

    Papers keep their order; within a paper lines of one unit stand together.
    """
    shown = checked[checked.test.isin(["above", "below"]) & checked.low.notna()]
    shown = pd.concat(
        [part.sort_values("unit", kind="stable") for _, part in shown.groupby("paper", sort=False)]
        or [shown]
    )
    turned = shown[["effect", "low", "high", "paper_effect"]].mul(
        shown.test.map({"above": 1.0, "below": -1.0}).astype(float), axis=0
    )
    turned = turned.assign(
        low=turned[["low", "high"]].min(axis=1), high=turned[["low", "high"]].max(axis=1)
    )
    label = shown.claim.where(
        shown.groupby("claim").data.transform("nunique") == 1, shown.claim + " (" + shown.data + ")"
    )
    return shown.assign(
        **turned, label=label.map(lambda text: textwrap.fill(text, 62, break_on_hyphens=False))
    )


def claim_panels(lines):
    """Rows of ``aligned`` as small multiples by paper and unit, at two columns' width; right is as
    claimed.

    Each line has its sentence, its effect with the 95 % interval, n, and the paper's effect as an
    upright tick; the verdict is colour and marker.
    """
    parts = [part for _, part in lines.groupby(["paper", "unit"], sort=False)]
    room = [0.09 + 0.1 * (1 + part.label.str.count("\n")) for part in parts]  # inches of each line
    tall = [0.35 + inches.sum() for inches in room]
    figure, axes = plt.subplots(
        len(parts),
        squeeze=False,
        figsize=(DOUBLE, 0.4 + sum(tall) + 0.22 * len(parts)),
        height_ratios=tall,
    )
    for axis, part, inches in zip(axes.flat, parts, room, strict=True):
        places = (inches.cumsum() - inches / 2).tolist()
        axis.axvline(0, color="0.3", linewidth=0.8, linestyle=":")
        axis.hlines(places, part.low, part.high, color="0.6", zorder=1)
        axis.plot(
            part.paper_effect,
            places,
            "|",
            color="black",
            markersize=9,
            markeredgewidth=1.5,
            zorder=2,
        )
        for place, (_, line) in zip(places, part.iterrows(), strict=True):
            axis.plot(
                line.effect,
                place,
                VERDICT["markers"][line.verdict],
                color=VERDICT["palette"][line.verdict],
                zorder=3,
            )
        axis.set(yticks=places, yticklabels=part.label, ylim=(inches.sum() + 0.04, -0.04))
        axis.set_xlabel(f"effect, {part.unit.iloc[0]}; right is as claimed")
        axis.set_title(part.paper.iloc[0], loc="left", fontweight="bold", pad=3)
        axis.tick_params(axis="y", labelsize=6, length=0)
        counts = axis.secondary_yaxis("right")
        counts.set_yticks(places, [f"n = {n}" for n in part.n])
        counts.tick_params(labelsize=6, length=0)
        counts.spines["right"].set_visible(False)
    marks = [
        plt.Line2D(
            [],
            [],
            linestyle="",
            marker=VERDICT["markers"][name],
            color=VERDICT["palette"][name],
            label=name,
        )
        for name in VERDICT["palette"]
        if name in set(lines.verdict)
    ]
    if lines.paper_effect.notna().any():
        marks.append(
            plt.Line2D(
                [],
                [],
                linestyle="",
                marker="|",
                color="black",
                markersize=9,
                markeredgewidth=1.5,
                label="the paper's effect",
            )
        )
    figure.legend(handles=marks, loc="outside upper right", ncols=len(marks))
    return figure
