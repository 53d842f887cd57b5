"""The tables of the papers with our numbers beside theirs: mean ± spread over runs, as CSV, Markdown and LaTeX."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from longtail.learn import methods
from longtail.store import runs

GROUPS = ["many", "medium", "few"]
MEASURES = [*GROUPS, "balance", "all"]
PICKING = {"prototypes": 10.0, "alpha": 0.3, "ratio": 1.5}     # MAK's own defaults (section 3.1); table 3 varies them
OVERHEAD = 700      # epochs that the extractor and ECLE cost; the control trains that much longer (MAK, section 3.4)

PUBLISHED = methods.published_settings()
TABLES = {      # name of the file: paper, its table, protocol
    "sdclr_linear": ("SDCLR", "slides, linear separability", "linear"),
    "sdclr_fewshot_linear": ("SDCLR", "slides, few-shot", "fewshot_linear"),
    **{f"mak_{table.lower().replace(' ', '')}_{protocol}": ("MAK", table, protocol)
       for table in ("Table 1", "Table 2", "Table 3") for protocol in ("linear", "fewshot_finetune")},
    "mak_overhead_linear": ("MAK", "Section 3.4", "linear"),
    "mak_overhead_fewshot_finetune": ("MAK", "Section 3.4", "fewshot_finetune"),
    "mak_imbalanced_downstream": ("MAK", "Section 3.4", "linear_longtail"),
    "rwsam_linear": ("rwSAM", "leaderboard", "linear_50000"),
    **{f"bcl_{protocol}": ("BCL", "README", protocol) for protocol in ("adam_full", "adam_100shot", "adam_50shot")},
    "colt_linear": ("COLT", "Tables 1 and 2, at second hand", "linear"),
}
NOTE = ("Percent. balance: population standard deviation over many, medium and few inside one run, then averaged over runs (the papers' "
        "column Std). ±: population standard deviation over splits or seeds. A difference is shown only at the published settings.")
SINGLE = ("converged", "nearest")        # selections of protocols without a training length: nothing to choose
VARIED = ["policy", "batch_size", "learning_rate", "weight_decay", "warmup_epochs", "temperature", "prune_fraction", "options"]
CONTROLS = {"gh": "two_stage"}      # what a method is set against beside the one that it builds on
SETTING = ["dataset", "sampling_set", "budget", "method", "head_layers", "added", "schedule", *PICKING]


def told_apart(names, rows, keys):
    """The names, a series, each with those settings of ``rows`` that differ among rows so called: ``simclr, weight_decay 0.0005``."""
    for key in keys:
        several = rows[key].groupby(names).transform("nunique") > 1
        names = names.mask(several, names + f", {key} " + rows[key].astype(str))
    return names


def encoders(rows):
    """What each row's encoder is called: its method, its head where it is not the published one, and what else sets it apart.

    ``rows`` have all fields of their runs, as those of ``finished`` and ``outcomes``; series with their index.
    """
    published_depth = rows.method.map(lambda name: methods.find(name).head_layers)
    names = rows.method.where(rows.head_layers == published_depth, rows.method + ", " + rows.head_layers.astype(str) + "-layer head")
    return told_apart(names, rows, ["epochs", *VARIED])


def reported(name="reported"):
    """The papers' rows as printed: the keys of ``outcomes``, then each measure and its ``_err`` as text; absent numbers are NaN.

    The papers' column Std is called balance here. Prototypes, alpha and ratio are 0 where nothing was picked by them.
    """
    rows = pd.read_csv(Path(__file__).with_name(f"{name}.csv"), dtype=str).rename(columns={"std": "balance", "std_err": "balance_err"})
    numbers = {"budget": int, "head_layers": int, **dict.fromkeys(PICKING, float)}
    return rows.fillna(dict.fromkeys(PICKING, "0")).astype(numbers)


def finished(results):
    """One row per finished run: its fields, its name, and how many seed images it had."""
    ended = {run: runs.recorded(results.folder(run) / "done.json") for run in results.done()}
    return pd.DataFrame([{**asdict(run), "run": run.name, "seed_images": end["seed_images"]} for run, end in ended.items()],
                        columns=[*runs.FIELDS, "run", "seed_images"])


def outcomes(results, selection="last_epoch"):
    """One row per finished run and protocol: the run's fields, how its images were picked, and MEASURES in percent.

    ``selection`` chooses among the classifiers of a protocol: last_epoch, or best_validation, which papers use and which picks by luck
    too. Protocols that have one classifier only (converged, nearest) are always there.
    """
    done = finished(results)
    scores = results.scores()
    scores = scores[(scores.selection == selection) | scores.selection.isin(SINGLE)]
    repeated = scores[scores.duplicated(["run", "protocol", "group"])]
    if len(repeated):
        raise ValueError(f"{repeated.run.iloc[0]} has two {repeated.protocol.iloc[0]} accuracies for one group; delete one of its files")
    wide = scores.pivot(index=["run", "protocol"], columns="group", values="accuracy").reindex(columns=[*GROUPS, "all"]).astype(float)
    wide["balance"] = np.std(wide[GROUPS].to_numpy(), axis=1) if len(wide) else []
    return wide.reset_index().merge(_picking(results, done), on="run")


def _picking(results, done):
    """The runs with the pool and the parameters their extra images were picked with, as ``sampling_set`` and PICKING."""
    picked = results.read("picked")
    picked = picked.loc[:, ~picked.columns.duplicated(keep="last")].rename(columns={"pool": "sampling_set"})
    picked = picked.reindex(columns=["run", "sampling_set", *PICKING]).drop_duplicates("run")
    frame = done.merge(picked, on="run", how="left").astype(dict.fromkeys(PICKING, float))
    frame.loc[frame.added != "mak", list(PICKING)] = 0.0
    unnamed = frame.added.map(lambda added: "none" if added == "none" else "unnamed pool")
    return frame.assign(sampling_set=frame.sampling_set.astype(object).fillna(unnamed))


def published(frame, paper, length=1.0):
    """Which rows of ``outcomes`` come from the paper's own data at its published settings, as a boolean series.

    ``length`` is the share of the published epochs that they were trained for.
    """
    frame = frame.assign(epochs=frame.epochs - OVERHEAD * (frame.schedule == "overhead"))
    full = pd.Series(False, index=frame.index)
    for (who, dataset, method), settings in PUBLISHED.items():
        if who == paper:
            wanted = pd.Series({"dataset": dataset, "method": method, "subset": "long_tail", **settings,
                                "epochs": length * settings["epochs"]})
            full |= (frame[wanted.index] == wanted).all(axis=1)
    return full


def compare(results, name, selection="last_epoch"):
    """The paper's table ``name`` (a key of TABLES) beside ours: one line per row and measure.

    Columns: data, pool, row, measure, paper, ours (equal epochs), difference, equal updates (MAK only), status. Status is full (published
    settings), quarter (the same for a quarter of the epochs), cut (the paper's data, other settings), own data, or not run. Only full rows
    are set against the paper's numbers.
    """
    (paper, table, protocol), printed = _printed_table(name)
    measures = [measure for measure in MEASURES if printed[measure].notna().any()]
    ours = _candidates(outcomes(results, selection), printed, protocol, sensitivity=table == "Table 3")
    full, quarter = published(ours, paper), published(ours, paper, 1 / 4)
    lines, used, digits = [], [], 2 if paper in ("SDCLR", "COLT") else 1     # as many digits as the paper prints
    for _, row in printed.iterrows():
        settings = PUBLISHED[paper, row.dataset, row.method]
        epochs = settings["epochs"] + OVERHEAD * (row.schedule == "overhead")
        match = ours[full & (ours[SETTING] == row[SETTING]).all(axis=1)]
        used += list(match.index)
        status = "full" if len(match[~match.updates]) else "not run"
        lines += _lines({**row, **settings, "epochs": epochs, "label": label(row)}, row, match, status, measures, digits)
    for group in _own_rows(ours.drop(index=used), printed):
        row = group.iloc[0]
        kinds = {"full": full[group.index].all(), "quarter": quarter[group.index].all(), "cut": row.dataset in set(printed.dataset)}
        status = next((kind for kind, fits in kinds.items() if fits), "own data")
        lines += _lines(row, None, group, status, measures, digits)
    return pd.DataFrame(lines).drop(columns=[] if paper == "MAK" else ["equal updates"])


def _printed_table(name):
    """A table's paper, title and protocol, and its printed rows."""
    if name not in TABLES:
        raise KeyError(f"no table {name!r}; there are {', '.join(TABLES)}")
    paper, table, protocol = TABLES[name]
    return TABLES[name], reported().query("paper == @paper and table.str.startswith(@table) and protocol == @protocol")


def _candidates(ours, printed, protocol, sensitivity):
    """Our rows that have a place in the table; equal updates become a column ``updates``, so that they stand beside equal epochs."""
    ours = ours.assign(updates=(ours.schedule == "updates").astype(bool), schedule=ours.schedule.replace("updates", "epochs"))
    return ours[(ours.subset == "long_tail") & (ours.protocol == protocol) & ours.method.isin(printed.method)
                & ours.added.isin(printed.added) & ours.schedule.isin(printed.schedule) & (usual(ours) | sensitivity)]


def _own_rows(ours, printed):
    """Groups of runs that make one row of their own, with its ``label``, in the paper's order of (method, added)."""
    places = {pair: place for place, pair in enumerate(dict.fromkeys(zip(printed.method, printed.added, strict=True)))}
    ours = ours.assign(order=[places[pair] for pair in zip(ours.method, ours.added, strict=True)],
                       label=told_apart(pd.Series([label(row) for _, row in ours.iterrows()], ours.index, dtype=str), ours, VARIED))
    place = ["dataset", "architecture", "epochs", "precision", "seed_images", "budget", "sampling_set", "order"]
    return [group for _, group in ours.groupby(list(dict.fromkeys([*place, *VARIED, *SETTING])), dropna=False)]


def usual(ours):
    """Which rows of ``outcomes`` are no part of a sensitivity study: MAK with its own parameters, and everything else."""
    return (ours.added != "mak") | (ours[list(PICKING)] == pd.Series(PICKING)).all(axis=1)


def _lines(setting, printed, ours, status, measures, digits):
    """One row of a table as a line per measure; printed is the paper's row, or None."""
    unlike = {"own data": "other data", "cut": "other settings", "quarter": "other length"}.get(status, "not printed")
    head = {"data": f"{setting['dataset']}, {setting['architecture']}, {setting['epochs']} epochs",
            "pool": "none" if setting["added"] == "none" else f"{setting['sampling_set']}, {setting['budget']}", "row": setting["label"]}
    lines = []
    for measure in measures:
        epochs, updates = ours[~ours.updates][measure], ours[ours.updates][measure]
        known = printed is not None and isinstance(printed[measure], str)
        lines.append({**head, "measure": measure, "paper": _printed(printed, measure) if known else unlike, "ours": spread(epochs, digits),
                      "difference": f"{epochs.mean() - float(printed[measure]):+.{digits}f}" if known and len(epochs) else "",
                      "equal updates": spread(updates, digits) if setting["schedule"] == "epochs" and setting["added"] != "none" else "",
                      "status": status})
    return lines


def label(setting):
    """What sets a row apart from its neighbours, in few words."""
    if setting["added"] == "none":
        return f"{setting['method']}, {setting['head_layers']}-layer head"
    unusual = [f"{key} {setting[key]:g}" for key, usual in PICKING.items() if setting["added"] == "mak" and setting[key] != usual]
    return ", ".join([setting["added"], *unusual, *(["overhead"] if setting["schedule"] == "overhead" else [])])


def _printed(row, measure):
    """The paper's number with the digits it was printed with."""
    error, count = row[f"{measure}_err"], row["runs"]
    return row[measure] + (f" ± {error}" if isinstance(error, str) else "") + (f" (n={count})" if isinstance(count, str) else "")


def spread(values, digits=1):
    """``81.2 ± 0.4 (n=5)``: mean and population standard deviation over runs; one run has no ±, none is ``not run``."""
    values = np.asarray(values, float)
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation} (n={len(values)})" if len(values) else "not run"


def gains(results, selection="last_epoch"):
    """What each method changes in the one that it builds on, with an equal head: points gained, mean ± sd over n pairs of split and seed.

    "sdclr+bcl" builds on "sdclr", a single name on "simclr"; GH is also set against its control. Rows: data, protocol, method,
    against, n, and each of MEASURES.
    """
    ours = outcomes(results, selection).query("subset == 'long_tail' and added == 'none'")
    ours = ours.assign(encoder=encoders(ours))
    paired = ["dataset", "architecture", "size", "policy", "epochs", "batch_size", "learning_rate", "weight_decay", "precision",
              "head_layers", "protocol", "split", "seed"]
    rows = []
    kinds = ours.groupby(["dataset", "epochs", "protocol", "method", "encoder"], sort=False)
    for (dataset, epochs, protocol, method, name), group in kinds:
        base = method.rpartition("+")[0] or "simclr"
        for other, bases in ours[ours.method.isin({base, CONTROLS.get(method)} - {method})].groupby("encoder", sort=False):
            pairs = group.merge(bases, on=paired, suffixes=("", "_base"))
            if len(pairs):
                differences = {measure: pairs[measure] - pairs[f"{measure}_base"] for measure in MEASURES}
                rows.append({"data": f"{dataset}, {epochs} epochs", "protocol": protocol, "method": name, "against": other,
                             "n": len(pairs), **{measure: f"{gain.mean():+.1f}" + (f" ± {gain.std(ddof=0):.1f}" if len(pairs) > 1 else "")
                                                 for measure, gain in differences.items() if gain.notna().any()}})
    return pd.DataFrame(rows, columns=["data", "protocol", "method", "against", "n", *MEASURES])


def show(table):
    """A table for the eye: rows that we have first, published settings in bold, quarter length in italics; not run below and in grey."""
    looks = {"not run": "color: #999999", "full": "font-weight: bold", "quarter": "font-style: italic"}
    table = table.sort_values("status", key=lambda status: status == "not run", kind="stable")
    style = table.set_index(["data", "pool", "row", "measure"]).style.set_uuid(runs.sha256(table.to_csv().encode())[:8])
    return style.apply(lambda line: [looks.get(line.status, "")] * len(line), axis=1)


def write(table, name, folder, note=NOTE):
    """Write a table as ``<name>.csv`` (every cell), ``.md`` and ``.tex`` (repeated labels left blank, booktabs), with a note below."""
    shown = table.astype(object).where(table.notna(), "")
    labels = ["data", "pool", "row"] if "row" in table else []
    for depth in range(len(labels), 0, -1):
        shown.loc[table[labels[:depth]].eq(table[labels[:depth]].shift()).all(axis=1), labels[depth - 1]] = ""
    runs.write(folder / f"{name}.csv", table.to_csv(index=False))
    runs.write(folder / f"{name}.md", shown.to_markdown(index=False, disable_numparse=True) + f"\n\n{note}\n")
    style = shown.style.hide(axis="index").format(precision=3, escape="latex").format_index(escape="latex", axis=1)
    text = style.to_latex(hrules=True, column_format="l" * table.shape[1]) + f"% {note}\n"
    for sign, command in {"±": r"$\pm$", "φ": r"$\phi$", "−": "-", "≥": r"$\geq$"}.items():
        text = text.replace(sign, command)
    runs.write(folder / f"{name}.tex", text)
