"""What the settings of servers of one's own may look like; nobody is asked."""

import pytest

from dreamforge.blobs import BlobSettings
from dreamforge.embedded.external import require_external
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import Settings

SECRET = "s3cr3t"
NOWHERE = BlobSettings(
    endpoint="http://127.0.0.1:1", public_endpoint="", access_key="", secret_key="", bucket="bucket", region="here"
)


def _refused(settings: Settings) -> str:
    with pytest.raises(StackError) as refused:
        require_external(settings, NOWHERE, ray_token=None)
    assert SECRET not in str(refused.value)
    # What is shown with a traceback, too.
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://painter:{SECRET}@127.0.0.1/forge",
        f"painter:{SECRET}@127.0.0.1/forge",
        f"host=127.0.0.1 password={SECRET}",
        "postgresql://127.0.0.1:99999/forge",
        # What people type: nothing is percent-encoded.
        f"postgresql://painter:a@{SECRET}@127.0.0.1/forge",
        f"postgresql://painter:{SECRET}/b@127.0.0.1/forge",
        f"postgresql://painter:1#{SECRET}@127.0.0.1/forge",
        f"postgresql://painter:1?{SECRET}@127.0.0.1/forge",
        f"postgresql://painter:[{SECRET}@127.0.0.1/forge",
        f"postgresql://painter:x@127.0.0.1:{SECRET}/forge",
    ],
)
def test_no_postgresql_url(url: str) -> None:
    said = _refused(Settings.model_validate({"database_url": url}))
    assert said.startswith("DREAMFORGE_DATABASE_URL is not like postgresql://user:password@host:5432/name (")


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@127.0.0.1:6379",
        f":{SECRET}@127.0.0.1:6379",
        f"redis://:{SECRET}/x@127.0.0.1:6379",
        f"redis://:1#{SECRET}@127.0.0.1:6379",
        "redis://",
    ],
)
def test_no_redis_url(url: str) -> None:
    said = _refused(Settings.model_validate({"redis_url": url}))
    assert said.startswith("DREAMFORGE_REDIS_URL is not like redis://:password@host:6379/0 (")


@pytest.mark.parametrize("url", ["auto", "ray://127.0.0.1:10001", "127.0.0.1:6379", "http://127.0.0.1:8265/#/jobs/x"])
def test_no_address_of_a_ray_dashboard(url: str) -> None:
    said = _refused(Settings.model_validate({"RAY_ADDRESS": url}))
    assert said.startswith("RAY_ADDRESS ")
    assert "http://host:8265" in said
