"""When running jobs will be done, from what was measured: never a guess.

The time per image is the median over images that are finished: the job's own when it has some, which were drawn on the
same GPU, else those of the same model, pixels, steps and preset in the ``RECENT_JOBS`` last succeeded jobs and in the
running jobs asked about. Of images that were denoised together each counts its share. What is left is every image that
was not begun, and of those that are being drawn the part that is missing. It is the time of drawing alone: while a
model is being loaded the job takes that much longer.

A job has no ETA while nothing like it was measured, while none of its steps is running (it waits, and for how long
is the queue's affair), and while it is being cancelled.
"""

import uuid
from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

RECENT_JOBS = 200
SAMPLES_PER_STEP = 5
"""Images of one step that are looked at, the last ones: the first may have met a cold GPU."""

ETA = text(
    """
    WITH wanted AS MATERIALIZED (
        SELECT id, model_id, params_json->'width' AS width, params_json->'height' AS height,
               params_json->'steps' AS denoising_steps, params_json->'preset' AS preset
        FROM jobs
        WHERE id = ANY(:job_ids) AND status = 'running'
          AND EXISTS (SELECT 1 FROM steps WHERE steps.job_id = jobs.id AND steps.status = 'running')
    ), recent AS MATERIALIZED (
        SELECT id, model_id, params_json->'width' AS width, params_json->'height' AS height,
               params_json->'steps' AS denoising_steps, params_json->'preset' AS preset
        FROM jobs WHERE status = 'succeeded' AND EXISTS (SELECT 1 FROM wanted)
        ORDER BY created_at DESC LIMIT :recent_jobs
    ), source AS (
        SELECT * FROM wanted
        UNION ALL
        SELECT * FROM recent
        WHERE (model_id, width, height, denoising_steps, coalesce(preset, 'null'))
              IN (SELECT model_id, width, height, denoising_steps, coalesce(preset, 'null') FROM wanted)
    ), sample AS MATERIALIZED (
        SELECT source.*, steps.name, measured.seconds
        FROM source JOIN steps ON steps.job_id = source.id
        CROSS JOIN LATERAL (
            SELECT extract(epoch FROM finished_at - started_at)
                / coalesce(CAST(artifacts.metadata_json->>'batch_size' AS integer), 1) AS seconds
            FROM items LEFT JOIN artifacts USING (step_id, item_index)
            WHERE items.step_id = steps.id AND items.status = 'succeeded' AND items.started_at IS NOT NULL
            ORDER BY item_index DESC LIMIT :samples
        ) AS measured
    ), own AS (
        SELECT id, name, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS seconds FROM sample GROUP BY id, name
    ), alike AS (
        SELECT model_id, width, height, denoising_steps, preset, name,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS seconds
        FROM sample GROUP BY model_id, width, height, denoising_steps, preset, name
    ), rest AS (
        SELECT wanted.id, steps.name, sum(
            CASE WHEN items.status = 'running' AND steps.status = 'running' THEN 1 - items.progress ELSE 1 END
        ) AS images
        FROM wanted JOIN steps ON steps.job_id = wanted.id JOIN items ON items.step_id = steps.id
        WHERE items.status <> 'succeeded'
        GROUP BY wanted.id, steps.name
    )
    SELECT wanted.id, CASE WHEN bool_and(rest.images IS NULL OR own.seconds IS NOT NULL OR alike.seconds IS NOT NULL)
        THEN CAST(coalesce(sum(rest.images * coalesce(own.seconds, alike.seconds)), 0) AS double precision)
        END AS seconds
    FROM wanted
    LEFT JOIN rest ON rest.id = wanted.id
    LEFT JOIN own ON own.id = wanted.id AND own.name = rest.name
    LEFT JOIN alike ON alike.name = rest.name AND alike.model_id = wanted.model_id AND alike.width = wanted.width
        AND alike.height = wanted.height AND alike.denoising_steps = wanted.denoising_steps
        AND alike.preset IS NOT DISTINCT FROM wanted.preset
    GROUP BY wanted.id
    """
)


async def eta_seconds(session: AsyncSession, job_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, float]:
    """Seconds until the jobs are drawn, for those of them that have an ETA. One statement, however many they are."""
    if not job_ids:
        return {}
    values = {"job_ids": list(job_ids), "recent_jobs": RECENT_JOBS, "samples": SAMPLES_PER_STEP}
    rows = await session.execute(ETA, values)
    return {row.id: row.seconds for row in rows if row.seconds is not None}
