"""One replica of the API in a process of its own, without what a stream does not need.

`python -m tests.benchmarks.replica DATABASE_URL PORT`
"""

import argparse

import uvicorn
from sqlalchemy import event

from dreamforge.api.app import create_app
from dreamforge.api.garbage import leave_out_what_is_there
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.store.engine import open_async_engine

STATEMENTS = "/statements"
"""Where it tells how many statements the application has sent to Postgres. SQLAlchemy's pings are not its own."""
_AWAY = "http://127.0.0.1:1"


def main() -> None:
    """Answer until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    engine = open_async_engine(arguments.database_url, application="api")
    rules = ApiRules(redis_outage="accept", max_body=1 << 20, presign_ttl=60, heartbeat_seconds=5.0)
    blobs = Blobs(BlobSettings(_AWAY, _AWAY, access_key="none", secret_key="none", bucket="none", region="none"))
    app = create_app(ApiState(engine=engine, blobs=blobs, redis_url="redis://127.0.0.1:1/0", rules=rules))
    sent = [0]

    def count(*_: object) -> None:
        sent[0] += 1

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    app.add_api_route(STATEMENTS, lambda: sent[0])
    leave_out_what_is_there()
    uvicorn.run(app, port=arguments.port, log_level="critical", backlog=4096)


if __name__ == "__main__":
    main()
