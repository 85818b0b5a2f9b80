"""A Hub on loopback: the calls that create, preupload, LFS upload, commit and read, over real HTTP, in memory.

Reached with `HF_ENDPOINT`; without a git history, a commit is a full set of files. Set `fail` to have a call refused.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, LFS_SIZE = "tester", 8192
LFS_ENDINGS = (".safetensors", ".bin", ".parquet")


class Repository:
    """Commits by their ids, newest last. `main` and tags are names for them."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.names: dict[str, str] = {}
        self.lfs: set[str] = set()
        self.commit({".gitattributes": b""})

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        self.names["main"] = oid
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        oid = self.names.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


class LoopbackHub(ThreadingHTTPServer):
    """
    Attributes:
        repositories (`dict`): by `"models/OWNER/NAME"` or `"datasets/OWNER/NAME"`.
        asked (`list[tuple[str, str]]`): method and path of every request.
        fail (`callable`): takes method and path; returns a status to refuse with, or `None`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.body = b""  # of the last request
        self.tokens: set[str] = set()
        self.fail: Any = lambda method, path: None

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        found = self.repositories[f"{kind}/{repo_id}"].at("main")
        assert found is not None
        return found[1]


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_args: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, path))
        self.server.body = self.body
        self.server.tokens.add((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        status = self.server.fail(self.command, path)
        if status == 0:  # hang up
            self.close_connection = True
            return None
        if status is not None:
            return self.reply({"error": f"made up {status}"}, status)
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, **found.groupdict())
        return self.reply({"error": f"no such call: {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, what: str) -> None:
        self.reply({"error": f"{what} not found"}, 404, X_Error_Code=f"{what}NotFound", X_Error_Message=what)

    def found(self, kind: str | None, repo: str, revision: str) -> Any:
        """The repository and its commit, or `None` after an answer of 404."""
        repository = self.server.repositories.get(f"{(kind or 'models').rstrip('/')}/{repo}")
        if repository is None:
            return self.missing("Repo")
        commit = repository.at(revision)
        return self.missing("Revision") if commit is None else (repository, *commit)

    # What writes

    def whoami(self) -> None:
        self.reply({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo, kind = f"{asked.get('organization') or OWNER}/{asked['name']}", asked.get("type") or "model"
        place = f"{kind}s/{repo}"
        url = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{repo}"
        if place in self.server.repositories:
            return self.reply({"error": "You already created this repo", "url": url}, 409)
        self.server.repositories[place] = Repository()
        return self.reply({"url": url, "id": repo, "name": repo})

    def validate(self) -> None:
        """What the Hub checks of a card's metadata, as far as it is known here."""
        found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        data = yaml.safe_load(found[1]) if found else {}
        errors = []
        if "base_model" in data and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data["base_model"])):
            errors.append({"message": '"base_model" is not a valid model id'})
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                if not {"task", "dataset", "metrics"} <= set(result) or "name" not in result["dataset"]:
                    errors.append({"message": f"bad model-index: {result}"})
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        if self.found(kind, repo, revision):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if is_large(file) else "regular", "shouldIgnore": False}
                for file in json.loads(self.body)["files"]
            ]
            self.reply({"files": files})

    def batch(self, kind: str | None, repo: str) -> None:
        def action(asked: dict[str, Any]) -> dict[str, Any]:
            if asked["oid"] in self.server.objects:
                return asked
            return {**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}}}

        self.reply({"transfer": "basic", "objects": [action(asked) for asked in json.loads(self.body)["objects"]]})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply({"error": "content differs from its oid"}, 400)
        self.server.objects[oid] = self.body
        return self.reply({})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        place = self.found(kind, repo, revision)
        if not place:
            return
        repository, _, files = place
        files = dict(files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                repository.lfs.add(value["path"])
            elif line["key"] != "header":
                self.reply({"error": f"unknown operation {line['key']}"}, 400)
                return
        oid = repository.commit(files)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def tag(self, kind: str, repo: str, revision: str) -> None:
        if place := self.found(kind, repo, revision):
            place[0].names[json.loads(self.body)["tag"]] = place[1]
            self.reply({})

    # What reads

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        if place := self.found(kind, repo, revision):
            _, oid, files = place
            siblings = [{"rfilename": name} for name in files]
            self.reply({"_id": "1", "id": repo, "sha": oid, "private": False, "tags": [], "siblings": siblings})

    def tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        if place := self.found(kind, repo, revision):
            repository, _, files = place
            below = f"{folder}/" if folder else ""
            found = [entry(repository, name, data) for name, data in files.items() if name.startswith(below)]
            self.reply(found) if found else self.missing("Entry")

    def paths(self, kind: str, repo: str, revision: str) -> None:
        if place := self.found(kind, repo, revision):
            repository, _, files = place
            text = self.body.decode()
            asked = json.loads(text) if text.startswith("{") else parse_qs(text)
            wanted = asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]
            self.reply([entry(repository, name, files[name]) for name in wanted if name in files])

    def resolve(self, kind: str | None, repo: str, revision: str, file: str) -> None:
        if place := self.found(kind, repo, revision):
            _, oid, files = place
            if file not in files:
                return self.reply({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
            data, start, status = files[file], 0, 200
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                start, status = int(asked[1]), 206
                data = data[start : int(asked[2]) + 1 if asked[2] else None]
            return self.reply(data, status, ETag=etag, X_Repo_Commit=oid, Accept_Ranges="bytes")
        return None


def is_large(file: dict[str, Any]) -> bool:
    return bool(file["size"] > LFS_SIZE or file["path"].endswith(LFS_ENDINGS))


def entry(repository: Repository, name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    lfs = {"lfs": {"oid": oid, "size": len(data), "pointerSize": 100}} if name in repository.lfs else {}
    return {"type": "file", "path": name, "size": len(data), "oid": oid[:40], **lfs}


KIND, REPO = r"(?P<kind>models|datasets)", r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/{KIND}/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"POST /(?P<kind>datasets/)?{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.upload),
    (rf"POST /api/{KIND}/{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    (rf"POST /api/{KIND}/{REPO}/tag/(?P<revision>[^/]+)", Handler.tag),
    (rf"GET /api/{KIND}/{REPO}", Handler.info),
    (rf"GET /api/{KIND}/{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    (rf"GET /api/{KIND}/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", Handler.tree),
    (rf"POST /api/{KIND}/{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths),
    (rf"(GET|HEAD) /(?P<kind>datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]
