"""Figures: equal rows give equal bytes, changed rows do not, the sources travel inside."""

import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from PIL import Image

from longtail.learn.methods import METHODS
from longtail.papers import figures
from longtail.store import paths, runs

matplotlib.use("agg")
ROWS = pd.DataFrame(
    {
        "run": ["a", "a", "b", "b"],
        "method": ["SimCLR", "SimCLR", "SDCLR", "SDCLR"],
        "M": [2, 10, 2, 10],
        "phi": [1.0, 1.5, 1.1, 1.9],
    }
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A profile's figure folder, with one of the two runs finished at a known commit."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    runs.write_record(tmp_path / "results" / "runs" / "a" / "done.json", {"commit": "1234abcd"})
    return tmp_path / "figures" / "tiny"


def drawn(rows, folder):
    """Draw the rows from nothing, save, and give back the bytes of the three files."""
    figures.use_paper_style()
    axis = sns.lineplot(rows, x="M", y="phi", hue="method", style="method", **figures.METHOD)
    figures.save(axis.figure, "phi", rows, folder, "φ by M, n = 2 runs; no bars.")
    plt.close("all")
    return {suffix: (folder / f"phi.{suffix}").read_bytes() for suffix in ("pdf", "png", "csv")}


def test_equal_rows_give_equal_bytes(folder):
    first = drawn(ROWS, folder)
    assert drawn(ROWS.copy(), folder) == first
    pd.testing.assert_frame_equal(pd.read_csv(folder / "phi.csv"), ROWS, check_dtype=False)


def test_changed_rows_change_every_file_even_where_no_pixel_moves(folder):
    first = drawn(ROWS, folder)
    for changed in (ROWS.assign(phi=ROWS.phi + 0.1), ROWS.assign(phi=ROWS.phi + 1e-12)):
        after = drawn(changed, folder)
        assert all(after[suffix] != first[suffix] for suffix in first)


def test_sources_sit_inside_both_files(folder):
    files = drawn(ROWS, folder)
    source = json.loads(Image.open(folder / "phi.png").info["Description"])
    assert (
        source["caption"] == "φ by M, n = 2 runs; no bars."
        and b"n = 2 runs; no bars." in files["pdf"]
    )
    assert source["runs"] == {"a": "1234abcd", "b": "unknown"}
    assert b"1234abcd" in files["pdf"] and b"CreationDate" not in files["pdf"]


def test_a_figure_without_rows_is_refused(folder):
    with pytest.raises(ValueError, match="phi has no rows"):
        figures.save(plt.figure(), "phi", ROWS[:0], folder, "nothing")


def test_every_name_has_its_own_colour_marker_and_dash():
    for look in (figures.METHOD, figures.SAMPLER, figures.GROUP):
        for values in look.values():
            assert len(set(values.values())) == len(look["palette"])


def test_names_are_shown_in_words():
    said = {
        "sdclr+bcl": "SDCLR + BCL",
        "simclr, 3-layer head": "SimCLR, 3-layer head",
        "vs gamma=0.15": "VS, gamma 0.15",
        "few": "few",
        "simclr, weight_decay 0.0005": "SimCLR, weight decay 0.0005",
        "mak": "MAK",
        "knn": "votes of 200 neighbours",
        "mine": "mine",
    }
    assert [figures.word(name) for name in said] == list(said.values())
    assert figures.worded(ROWS.assign(method="sdclr"), "method").method.eq("SDCLR").all()
    assert {figures.word(name) for name in METHODS} <= set(figures.METHOD["palette"]) | {"given"}
    look = figures.look(figures.METHOD, ["SimCLR, 3-layer head", "SimCLR"])
    assert (
        look["hue_order"] == ["SimCLR", "SimCLR, 3-layer head"] and len(set(look["markers"])) == 2
    )
    assert len(set(look["palette"].values())) == 2  # the second is lighter


@pytest.mark.parametrize(
    "mine, fault",
    [
        (("MAK", "#000000", "o"), "mak, mine: called 'MAK'"),
        (("", "#000000", "o"), "mine: called ''"),
        (("mine", "brownish", "o"), "'brownish' is no colour"),
        (("mine", "#000000", "x"), "no filled marker"),
    ],
)
def test_a_look_that_cannot_be_told_apart_or_drawn_is_refused(mine, fault):
    with pytest.raises(ValueError, match=fault):
        figures._look(mak=("MAK", 3, "X"), mine=mine)


def test_an_interval_is_that_of_students_t():
    low, high = figures.interval([1.0, 2.0, 3.0])
    assert np.isclose(low, 2 - 4.3027 / 3**0.5, atol=1e-3) and np.isclose(
        high, 2 + 4.3027 / 3**0.5, atol=1e-3
    )
    assert np.isnan(figures.interval([1.0])).all()  # one pair says nothing of the next


def test_claims_are_turned_and_stand_by_paper():
    lines = pd.DataFrame(
        {
            "claim": list("abcd"),
            "paper": ["MAK", "SDCLR", "MAK", "MAK"],
            "unit": ["points", "points", "φ", "points"],
            "data": "digits",
            "test": ["above", "below", "above", "number"],
            "effect": [1.0, 2.0, 3.0, 4.0],
            "low": [0.0, 1.0, 2.0, 3.0],
            "high": [2.0, 3.0, 4.0, 5.0],
            "paper_effect": [1.0, -1.0, np.nan, 4.0],
        }
    )
    turned = figures.aligned(lines)
    assert turned.paper.tolist() == ["MAK", "MAK", "SDCLR"] and turned.claim.tolist() == [
        "a",
        "c",
        "b",
    ]
    assert turned[["effect", "low", "high", "paper_effect"]].iloc[2].tolist() == [
        -2.0,
        -3.0,
        -1.0,
        1.0,
    ]
    assert not len(figures.aligned(lines.astype({"test": "str"}).assign(low=np.nan)))
    for paper, named in ("SDCLR", True), ("MAK", False):  # claim c has no printed effect
        part = turned[(turned.paper == paper) & (turned.claim != "a")]
        panels = figures.claim_panels(part.assign(n=5, verdict="undecided"))
        legend = {text.get_text() for text in panels.legends[0].get_texts()}
        assert legend == {"undecided"} | ({"the paper's effect"} if named else set())
        plt.close(panels)


def test_image_grid_shows_the_pixels_it_was_given():
    pictures = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).view(5, 3, 4, 4)
    sheet = figures._sheet(pictures.numpy(), columns=3)
    assert sheet.shape == (2 * 4 + figures.GAP, 3 * 4 + 2 * figures.GAP, 3)
    step = 4 + figures.GAP
    assert (sheet[step:, step : step + 4] == pictures[4].permute(1, 2, 0).numpy()).all() and (
        sheet[step:, 2 * step :] == 255
    ).all()
    grid = figures.image_grid(
        {"seed": pictures, "picks": pictures[:2]}, columns=3, captions={"picks": ["a", "b"]}
    )
    assert [axis.get_title(loc="left") for axis in grid.axes] == ["seed", "picks"]
    assert grid.get_size_inches()[0] == figures.DOUBLE
    plt.close(grid)


def test_image_grid_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match="uint8"):
        figures.image_grid({"seed": np.zeros((2, 3, 4, 4))})
