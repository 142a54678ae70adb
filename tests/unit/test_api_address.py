"""Where `dreamforge up` says that the API is."""

from typing import Any

import pytest

from dreamforge.embedded.api_address import api_address
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import Settings


def _address(**values: Any) -> str:
    return api_address(Settings.model_validate({"port": 9000, **values}))


def test_it_is_here_with_a_ray_of_our_own_whatever_clients_speak_to_otherwise() -> None:
    assert _address(url="http://elsewhere:1") == "http://127.0.0.1:9000"
    assert _address(host="0.0.0.0") == "http://127.0.0.1:9000"  # noqa: S104 - only text here


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_it_is_here_when_the_cluster_s_head_is(head: str) -> None:
    assert _address(RAY_ADDRESS=f"http://{head}:8265") == "http://127.0.0.1:9000"


def test_on_another_machine_a_setting_must_say_how_to_reach_it() -> None:
    # An address for documentation: nobody's.
    cluster = {"RAY_ADDRESS": "http://192.0.2.7:8265"}
    with pytest.raises(StackError, match=r"will be on 192\.0\.2\.7.*DREAMFORGE_URL=http://192\.0\.2\.7:9000"):
        _address(**cluster)
    assert _address(**cluster, url="http://192.0.2.7:9000/") == "http://192.0.2.7:9000"
