"""Every command that a page or the help shows can be given as it stands."""

import re
import shlex

import pytest

from longtail.command import reproduce
from longtail.store import paths

PAGES = ["README.md", "OWN_IMAGES.md", "CONTRIBUTING.md", "REPRODUCE.md"]
TEXTS = [(paths.ROOT / page).read_text(encoding="utf-8") for page in PAGES] + [reproduce.EPILOG]
SHOWN = {
    re.split(r"\s{2,}|#|`", rest)[0].strip()
    for text in TEXTS
    for rest in re.findall(r"\./run_all\.sh\b([^\n]*)", text)
}
# of run_all.sh itself, and files that readers write
ELSEWHERE = ("--test", "--schema", "--no-setup", "mine.yaml", "birds.yaml")


@pytest.mark.parametrize("command", sorted(one for one in SHOWN if not one.startswith(ELSEWHERE)))
def test_a_documented_command_is_accepted(command, capsys):
    status = reproduce.main(
        [*shlex.split(command), *([] if "--dry-run" in command else ["--dry-run"])]
    )
    assert status == 0, capsys.readouterr().out


def test_there_are_such_commands():
    assert {"", "04 -p phi_views 6", "cifar10-small 09 10"} <= SHOWN
