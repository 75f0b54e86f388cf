"""What schemathesis cannot know from the document alone. SERVICE is the address of the service under test."""

import json
import os
import re
from urllib.request import Request, urlopen

import schemathesis
from hypothesis import strategies as st

ADMIN = {"X-User-Email": "admin@example.com", "X-User-Role": "ADMIN", "Content-Type": "application/json"}


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    return urlopen(Request(os.environ["SERVICE"] + path, data, ADMIN, method=method))


def cursors():
    """Cursors of both lists, without filters: there are two orders, and a page takes one."""
    for _ in range(2):
        call("POST", "/api/orders", {"items": [{"productId": "PROD123", "quantity": 1}]})
    links = (call("GET", path).headers["Link"] for path in ("/api/orders?limit=1", "/api/orders/my?limit=1"))
    return [re.search(r"cursor=([^&>]+)", link)[1] for link in links]


# Products of the demo Product Service; the last is unknown there.
schemathesis.openapi.format("product-id", st.sampled_from(["PROD123", "PROD456", "PROD404"]))
schemathesis.openapi.format("cursor", st.sampled_from(cursors()))
schemathesis.openapi.format("entity-tags", st.sampled_from(["*", '"1"', '"2"', 'W/"1"', '"1", "2"', '"other"']))


@schemathesis.check
def valid_requests_are_not_invalid(ctx, response, case):
    """A request that fits the document is never refused as invalid-request."""
    mode = case.meta.generation.mode if case.meta else None
    if mode is None or not mode.is_positive or response.status_code != 400:
        return
    problem = response.json()
    if not problem["type"].endswith(":invalid-request"):
        return
    # What no schema can say: a cursor belongs to its list and filters; the lines of one product have one limit together;
    # a whole number is written without a point (JSON Schema takes 2.0 for an integer).
    if "cursor" in (case.query or {}) or re.search("10000 in one order|floating point", problem["detail"]):
        return
    raise AssertionError(f"refused as invalid: {problem['detail']}")
