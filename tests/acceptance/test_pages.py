"""
Goal: whoever finds the address finds the way: reference, description, metrics, health.
Method: the pages of a running gateway.
"""

from __future__ import annotations

import re

from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from gateway.endpoints import ENDPOINTS
from tests.support.merchant import Merchant
from tests.support.running_gateway import RunningGateway


def test_the_door_leads_to_the_reference(gateway: RunningGateway) -> None:
    """
    The root redirects to a page that needs nothing else and runs nothing.
    """
    nobody = Merchant(gateway.url, None)
    door = nobody.http.get("/")
    assert (door.status_code, door.headers["location"]) == (307, "/docs")

    page = nobody.http.get("/docs")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for endpoint in ENDPOINTS:
        assert f'id="{endpoint.name}"' in page.text
    nobody.close()


def test_the_style_is_allowed(gateway: RunningGateway) -> None:
    """
    The page's own policy lets its style through.
    """
    nobody = Merchant(gateway.url, None)
    page = nobody.http.get("/docs")
    nobody.close()

    assert re.search(
        r"style-src 'sha256-[A-Za-z0-9+/]{43}='", page.headers["content-security-policy"]
    )
    assert page.text.count("<style>") == 1
    assert "style=" not in page.text


def test_the_description_is_served(gateway: RunningGateway) -> None:
    """
    /openapi.json is a valid document of all endpoints.
    """
    nobody = Merchant(gateway.url, None)
    document = nobody.http.get("/openapi.json").json()
    nobody.close()

    validate(document)
    assert set(document["paths"]) == {endpoint.path for endpoint in ENDPOINTS}


def test_metrics_count_what_was_asked(gateway: RunningGateway, acme: Merchant) -> None:
    """
    A request more is one more in its endpoint's count.
    """

    def opened() -> float:
        text = acme.http.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "miliano_requests_total"
            and sample.labels == {"endpoint": "openWallet", "status": "2xx"}
        )

    before = opened()
    acme.open_wallet()
    assert opened() == before + 1


def test_head_is_answered_without_a_body(acme: Merchant) -> None:
    """
    HEAD tells what GET would, and sends nothing.
    """
    wallet = acme.open_wallet()
    got = acme.http.get(f"/v1/wallets/{wallet}")
    head = acme.http.head(f"/v1/wallets/{wallet}")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
