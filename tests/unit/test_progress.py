"""Progress of an item."""

from hypothesis import given
from hypothesis import strategies as st

from dreamforge.jobs.progress import STAGE_WEIGHTS, Stage, item_progress


def test_the_stages_make_up_the_whole() -> None:
    assert abs(sum(STAGE_WEIGHTS.values()) - 1.0) < 1e-9
    assert set(STAGE_WEIGHTS) == set(Stage)
    assert item_progress(Stage.SAVE, 1.0) == 1.0


@given(st.sampled_from(list(Stage)), st.floats(-1, 2, allow_nan=False))
def test_it_stays_between_nothing_and_all(stage: Stage, share: float) -> None:
    assert 0.0 <= item_progress(stage, share) <= 1.0


def test_it_only_rises_from_stage_to_stage() -> None:
    readings = [item_progress(stage, share) for stage in Stage for share in (0.0, 0.5, 1.0)]
    assert readings == sorted(readings)
