"""Progress of an item."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.installation.observer import Phase
from dreamforge.jobs.progress import DOWNLOAD_WEIGHTS, STAGE_WEIGHTS, DownloadStage, Stage, item_progress


def test_the_stages_make_up_the_whole() -> None:
    assert abs(sum(STAGE_WEIGHTS.values()) - 1.0) < 1e-9
    assert set(STAGE_WEIGHTS) == set(Stage)
    assert item_progress(Stage.SAVE, 1.0) == 1.0
    assert abs(sum(DOWNLOAD_WEIGHTS.values()) - 1.0) < 1e-9
    assert set(DOWNLOAD_WEIGHTS) == set(DownloadStage)
    assert item_progress(DownloadStage.REGISTER, 1.0) == 1.0


def test_a_download_has_a_stage_for_each_phase_of_an_installation() -> None:
    assert [stage.value for stage in DownloadStage] == [phase.value for phase in Phase]
    assert not {stage.value for stage in DownloadStage} & {stage.value for stage in Stage}


@given(st.sampled_from([*Stage, *DownloadStage]), st.floats(-1, 2, allow_nan=False))
def test_it_stays_between_nothing_and_all(stage: Stage | DownloadStage, share: float) -> None:
    assert 0.0 <= item_progress(stage, share) <= 1.0


@pytest.mark.parametrize("stages", [Stage, DownloadStage])
def test_it_only_rises_from_stage_to_stage(stages: type[Stage] | type[DownloadStage]) -> None:
    readings = [item_progress(stage, share) for stage in stages for share in (0.0, 0.5, 1.0)]
    assert readings == sorted(readings)
