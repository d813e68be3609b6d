"""How the client of S3 comes into being: everything a usual one has, and nothing that is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import s3fs
from aiobotocore.session import AioSession  # type: ignore[import-untyped]

from ocdbt_py.storage.location import resolve
from ocdbt_py_backends.s3_client import begin_session, without_certificates


def filesystem(**options: Any) -> Any:
    return s3fs.S3FileSystem(anon=True, skip_instance_cache=True, **options)


def test_descriptions_are_found_without_looking_into_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = filesystem()
    begin_session(fs)
    loader = fs.session.get_component("data_loader")
    monkeypatch.setattr(loader.file_loader, "exists", lambda path: pytest.fail(f"looked for {path}"))
    found = loader.list_available_services("service-2")
    assert {"s3", "sts", "sso"} <= set(found)


def test_descriptions_are_those_that_a_usual_session_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "s3" / "2999-01-01"
    changed.mkdir(parents=True)
    (changed / "service-2.json").write_text(json.dumps({"of": "the user"}))
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    fs = filesystem()
    begin_session(fs)
    ours, usual = fs.session.get_component("data_loader"), AioSession().get_component("data_loader")
    assert ours.load_service_model("s3", "service-2") == {"of": "the user"}
    for service in ("s3", "sts", "sso"):
        assert ours.load_service_model(service, "service-2") == usual.load_service_model(service, "service-2")


def test_a_session_of_the_users_own_is_left_alone() -> None:
    session = AioSession()
    fs = filesystem(session=session)
    begin_session(fs)
    assert fs.session is session


@pytest.mark.parametrize(
    ("options", "verify"),
    [
        ({"endpoint_url": "http://127.0.0.1:1"}, False),
        ({"client_kwargs": {"endpoint_url": "http://127.0.0.1:1"}}, False),
        ({"endpoint_url": "http://127.0.0.1:1", "client_kwargs": {"verify": "/ca.pem"}}, "/ca.pem"),
        ({"endpoint_url": "http://127.0.0.1:1", "client_kwargs": {"endpoint_url": "https://s3.invalid"}}, None),
        ({"endpoint_url": "https://s3.invalid"}, None),
        ({}, None),
    ],
)
def test_certificates_are_read_where_an_endpoint_may_show_one(options: dict[str, Any], verify: object) -> None:
    assert without_certificates(options).get("verify") == verify
    place = resolve("s3://bucket/place", storage_options={"anon": True, **options})
    storage: Any = place.storage
    assert storage.fs.client_kwargs.get("verify") == verify
