"""HTTP, as tests speak it: as `web.get()` does, without reading the machine's certificates anew for each request."""

from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

web = httpx2.Client(
    # Each request meets the servers as they are now, and none remembers another's cookies.
    limits=httpx2.Limits(max_keepalive_connections=0),
    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
)
"""For all threads."""
