"""What becomes of a HAProxy configuration that is not the one the edge knows."""

import sys
from pathlib import Path

import pytest

from dreamforge.edge import haproxy
from dreamforge.edge.configuration import UnknownConfiguration, edit


@pytest.mark.parametrize(
    ("configuration", "missing"),
    [
        ("", "no section 'global'"),
        ("global\n    maxconn 5\n", "no section 'frontend http_frontend'"),
        (
            "global\n    maxconn 5\nfrontend http_frontend\n    bind *:1\n",
            "no line like 'mode 666' in section 'global'",
        ),
    ],
)
def test_an_unknown_configuration_stops_with_one_sentence(
    configuration: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownConfiguration, match=missing):
        edit(configuration, descriptors=1000)
    path = tmp_path / "haproxy.cfg"
    path.write_text(configuration)
    monkeypatch.setattr(sys, "argv", ["dreamforge-haproxy", "-db", "-f", str(path)])
    with pytest.raises(SystemExit) as ended:
        haproxy.main()
    assert ended.value.code == (
        f"dreamforge-haproxy: Ray Serve's HAProxy configuration has {missing}. "
        "Install the version of Ray that constraints.txt names."
    )
