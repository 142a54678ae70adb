"""Downloads: files over HTTP that are whole and verified, or not there."""
