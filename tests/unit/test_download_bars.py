"""What a terminal shows while a model is installed."""

import io

from rich.console import Console

from dreamforge.cli.download_progress import observing
from dreamforge.installation.observer import Phase


def test_where_no_bytes_are_counted_none_are_shown() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with observing(console, print_line=None) as observer:
        observer.on_phase(Phase.REGISTER)
    assert "Asking the source" in screen.getvalue()
    assert "?" not in screen.getvalue().replace("\x1b[?", "")
