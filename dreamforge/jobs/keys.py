"""Where an image lies in the bucket."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ImageName:
    """What an image's key tells. ``taken_at`` is set once per attempt and item, so no key is written twice."""

    user_id: str
    job_id: str
    step: str
    taken_at: datetime
    item_index: int
    width: int
    height: int
    seed: int
    extension: str

    @property
    def key(self) -> str:
        """`dreamforge/{user}/jobs/{job_id}/{step}/{ts}_{index}_{w}x{h}_{seed}.{ext}`, ts in UTC."""
        stamp = self.taken_at.strftime("%Y%m%dT%H%M%S%fZ")
        name = f"{stamp}_{self.item_index}_{self.width}x{self.height}_{self.seed}.{self.extension}"
        return f"dreamforge/{self.user_id}/jobs/{self.job_id}/{self.step}/{name}"
