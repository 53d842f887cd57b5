"""Settings that would fill the memory, or the stack, are refused in a line before they are written
out.
"""

import time

import pytest

from longtail.label import adjusted
from longtail.learn.methods import METHODS
from longtail.pick import samplers
from longtail.store import arms, runs
from longtail.store.settings import Refused, read_value, read_yaml

LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{k}: &m{k} {{<<: [{', '.join([f'*m{k - 1}'] * 9)}]}}\n" for k in range(1, 10)
)
BOMBS = {
    "aliases": (LAUGHS, "more than 20000 values"),
    "merges": (MERGES, "more than 20000 values"),
    "itself": ("a: &a [*a]", "nested more than 20 deep"),
    "itself as a mapping": ("a: &a {b: *a}", "nested more than 20 deep"),
    "deep": (f"a: {'[' * 5000}", "nested too deep"),
    "deep mappings": (f"a: {'{a: ' * 5000}", "nested too deep"),
    "digits": (f"a: 0x{'f' * 10**6}", "a value has 1000002 characters"),
    "sixties": (f"a: 1{':59' * 20000}", "a value has 60001"),
}


@pytest.mark.parametrize("text, words", BOMBS.values(), ids=BOMBS)
def test_what_grows_when_it_is_written_out_is_refused(tmp_path, text, words):
    file, began = tmp_path / "mine.yaml", time.process_time()
    file.write_text(text)
    with pytest.raises(Refused, match=f"mine.yaml cannot be read as YAML: .*{words}") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError, match=words):
        read_value(text.partition(": ")[2] if text.startswith("a: ") else text)
    assert time.process_time() - began < 20


def test_aliases_and_merges_as_people_use_them_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "first: &few {epochs: 3, seeds: [1, 2]}\nsecond: {<<: *few, epochs: 4}\n"
    )
    assert read_yaml(tmp_path / "mine.yaml")["second"] == {"epochs": 4, "seeds": [1, 2]}
    assert read_value("&few [1, *few]".replace("*few", "2")) == [1, 2] and read_value("") is None


def test_a_record_nested_without_end_is_named(tmp_path):
    (tmp_path / "run.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"run\.json is no whole JSON file"):
        runs.recorded(tmp_path / "run.json")


@pytest.mark.parametrize(
    "setting",
    [
        "batch_size=1",
        "epochs=0",
        "epochs=-5",
        "epochs=10000000",
        "head_layers=-1",
        "head_layers=1000000",
        "temperature=0",
        "learning_rate=-1",
        "weight_decay=2",
        "prune_fraction=7",
        "warmup_epochs=-1",
        "budget=-3",
    ],
)
def test_what_an_arm_sets_has_the_ranges_of_the_parameters(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{name} is .*; it lies between"):
        arms.read_arm(f"simclr long_tail {setting}")
    with pytest.raises(ValueError, match="no precision bf16 in .*; there are float32"):
        arms.read_arm("simclr long_tail precision=bf16")


def test_every_number_that_a_line_sets_has_a_range():
    options = {name: value for kind in METHODS.values() for name, value in kind.options.items()}
    numbers = {name for name, value in options.items() if type(value) in (int, float)}
    losses = {name for loss in adjusted.LOSSES for name in adjusted.read_loss(loss)[1]}
    known = arms.OF_A_LINE.keys() | {"low", "high"}  # ts tells these
    assert numbers | losses | set(samplers.SETTINGS_OF_A_ROW) <= known
    assert arms.OF_AN_ARM - {"architecture", "policy", "precision"} <= known
