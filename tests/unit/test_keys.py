"""Where an image lies."""

from datetime import UTC, datetime

from dreamforge.jobs.keys import ImageName


def test_the_key_tells_job_step_time_item_size_and_seed() -> None:
    name = ImageName(
        user_id="default",
        job_id="0192",
        step="generate",
        taken_at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        item_index=3,
        width=64,
        height=72,
        seed=9,
        extension="png",
    )
    assert name.key == "dreamforge/default/jobs/0192/generate/20260102T030405000678Z_3_64x72_9.png"
