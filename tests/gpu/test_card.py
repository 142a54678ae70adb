"""What is read of `nvidia-smi`, with a script in its place that answers as it does."""

from pathlib import Path

import pytest

from tests.gpu.card import Card, NoCard, first_card

ANSWERS = """#!/bin/sh
echo "$*" >>{folder}/asked
case "$*" in
*memory.used*) head -n 1 {folder}/used; sed -i 1d {folder}/used;;
*) echo "NVIDIA H100 80GB HBM3, 580.159.04, 81559";;
esac
"""
CARD = Card(index="0", name="", driver="", total_mib=0)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with what it is asked, and with the MiB in use that it answers, a line for each time."""
    _place(tmp_path, ANSWERS.format(folder=tmp_path), monkeypatch)
    return tmp_path


def _place(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize("visible", ["2,3", "GPU-8d1a6b0c-0000-0000-0000-000000000000"])
def test_the_first_card_is_the_first_that_processes_may_use(
    answers: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    index = visible.split(",")[0]
    assert first_card() == Card(index=index, name="NVIDIA H100 80GB HBM3", driver="580.159.04", total_mib=81559)
    assert f"-i {index} " in (answers / "asked").read_text()


def test_memory_that_comes_back_late_is_waited_for(answers: Path) -> None:
    (answers / "used").write_text("8000\n700\n564\n500\n")
    assert CARD.settled_mib(500) == 564


def test_a_driver_that_does_not_answer_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _place(tmp_path, "#!/bin/sh\necho 'No devices were found'; exit 6\n", monkeypatch)
    with pytest.raises(NoCard, match="No devices were found"):
        first_card()
