"""The page on an app: behind the API's key, and beside paths that are none."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from audiogen.serve.api import Limits, create_app
from audiogen.serve.page.build import mount
from tests.serve.conftest import Start
from tests.serve.test_api import Client

pytest.importorskip("gradio", reason="needs the extra serve")


@pytest.fixture
def app(start: Start) -> FastAPI:
    app = create_app({"tokens": start("tokens")}, Limits(api_key="sesame"))
    stop = mount(app, app.state.api)
    assert isinstance(stop, asyncio.Event) and not stop.is_set()
    return app


def test_the_page_asks_for_the_key(app: Any) -> None:
    client = Client(app)
    assert (
        '"auth_required":true' in client("GET", "/").text
        and client("GET", "/gradio_api/info").status_code == 401
    )
    assert client("POST", "/login", data={"username": "x", "password": "wrong"}).status_code == 400
    answer = client("POST", "/login", data={"username": "x", "password": "sesame"})
    cookies = {"headers": {"cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())}}
    assert answer.status_code == 200 and client("GET", "/gradio_api/info", **cookies).status_code == 200


def test_paths_that_are_none_have_the_apis_errors(app: Any) -> None:
    client = Client(app)
    for path in ("/v1/nosuch", "/page/takes/nosuch.wav"):
        answer = client("GET", path)
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
    assert client("GET", "/v1/models").status_code == 401 and client("GET", "/health").status_code == 200
