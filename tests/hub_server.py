"""A small server that huggingface_hub takes for the Hub: repositories of models, in memory.

What it knows: who a token belongs to, making a repository, commits of regular and LFS files and of removals,
listing, information, download at a revision. And data sets, to be read: `datasets` holds their files by
`name@revision`. An answer is of the Hub's shape as far as huggingface_hub reads it.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

TOKEN, USER = "hf_thetokenofthetests", "me"

#: Some of the identifiers that a card's `license` may have.
LICENCES = ("apache-2.0", "mit", "openrail", "other")

#: Endings that are stored as LFS files.
LFS = (".safetensors", ".png")


class HubServer(ThreadingHTTPServer):
    """A Hub on localhost; `commits` holds its repositories: a list of files by path for each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.clear()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def clear(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.served: list[str] = []  # files
        self.asked: list[str] = []  # paths of all requests
        self.refuse_commits = False

    def files(self, repo):
        return self.commits[repo][-1]

    def at(self, repo, revision):
        """The files and the commit of a revision: a branch, a tag `v<n>` or a commit."""
        commits = self.commits[repo]
        for number, files in enumerate(commits):
            if revision in (sha(repo, number), f"v{number}"):
                return files, sha(repo, number)
        return (commits[-1], sha(repo, len(commits) - 1)) if revision == "main" else (None, None)


def sha(repo, number):
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def set_endpoint(monkeypatch, endpoint):
    """As HF_ENDPOINT does before the client is imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Versions before 1.0 keep a copy.
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def set_client(monkeypatch, server, cache):
    """Has this process' huggingface_hub take the server for the Hub."""
    set_endpoint(monkeypatch, server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # Versions before 1.0 keep a session for each thread, which stays offline if it was made so.
    getattr(_http, "reset_sessions", lambda: None)()


@contextlib.contextmanager
def serving(monkeypatch, cache):
    """A Hub, and a huggingface_hub that is set to it."""
    server = HubServer()
    set_client(monkeypatch, server, cache)
    yield server
    server.shutdown()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def answer(self, status=200, content=None, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code):
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(unquote(url.path))
        path = url.path  # a revision may hold slashes, which are quoted
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                writes = self.command == "POST" and not re.search("validate|paths-info", path)
                if (writes or "whoami" in path) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.error(401, "Unauthorized")
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                repo = parts.get("repo")
                if repo is not None and repo not in self.server.commits:
                    return self.error(404, "RepoNotFound")
                return function(self, **parts)
        return self.error(404, "NoSuchRoute")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def whoami(self):
        self.answer(content={"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        given = json.loads(self.body)
        repo = f"{given.get('organization') or USER}/{given['name']}"
        url = f"{self.server.endpoint}/{repo}"
        if repo in self.server.commits:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.commits[repo] = [{}]
        self.server.private[repo] = bool(given.get("private") or given.get("visibility") == "private")
        return self.answer(content={"url": url, "id": repo})

    def validate_yaml(self):
        """As the Hub does: the metadata of a card has to be YAML, with a model-index of the known shape."""
        try:
            _, text, _ = json.loads(self.body)["content"].split("---\n", 2)
            metadata = yaml.safe_load(text)
            assert metadata.get("license", "mit") in LICENCES, '"license" must be one of them'
            for model in metadata.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                    assert all(metric["type"] and "value" in metric for metric in result["metrics"])
        except Exception as error:
            return self.answer(400, {"errors": [{"message": repr(error)}], "warnings": []})
        return self.answer(content={"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer(content={"files": files})

    def lfs_batch(self, repo):
        objects = [
            {
                **file,
                "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{file['oid']}", "header": {}}},
            }
            for file in json.loads(self.body)["objects"]
        ]
        self.answer(content={"transfer": "basic", "objects": objects}, Content_Type="application/json")

    def lfs_put(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.answer()

    def commit(self, repo, revision):
        if self.server.refuse_commits:
            return self.answer(413, {"error": "too large"})
        files = dict(self.server.files(repo))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                return self.error(404, "EntryNotFound")
        self.server.commits[repo].append(files)
        oid = sha(repo, len(self.server.commits[repo]) - 1)
        url = f"{self.server.endpoint}/{repo}/commit/{oid}"
        return self.answer(content={"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def information(self, repo, revision="main"):
        files, oid = self.server.at(repo, revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        return self.answer(content=self.model(repo, files, oid))

    def model(self, repo, files, oid):
        card = files.get("README.md", b"").decode().split("---\n", 2)
        metadata = yaml.safe_load(card[1]) if len(card) == 3 else {}
        return {
            "id": repo, "modelId": repo, "sha": oid, "private": self.server.private[repo], "downloads": 7,
            "likes": 0, "tags": metadata.get("tags", []), "lastModified": "2026-11-24T00:00:00.000Z",
            "createdAt": "2026-11-24T00:00:00.000Z", "siblings": [{"rfilename": name} for name in files],
            "cardData": metadata,
        }  # fmt: skip

    def tree(self, repo, revision):
        files, oid = self.server.at(repo, revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": oid}
            for path, content in files.items()
        ]
        return self.answer(content=entries)

    def models(self):
        found = [self.model(repo, *self.server.at(repo, "main")) for repo in self.server.commits]
        wanted = set(self.query.get("filter", []))
        self.answer(content=[model for model in found if wanted.issubset(model["tags"])])

    def resolve(self, repo, revision, path):
        files, oid = self.server.at(repo, revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        if path not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        content = files[path]
        self.server.served.append(path)
        return self.answer(content=content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=oid)

    def dataset(self, name, revision="main"):
        for key, files in self.server.datasets.items():
            if key == f"{name}@{revision}" or (key.startswith(f"{name}@") and revision == sha(key, 0)):
                return key, files
        return None, None

    def dataset_information(self, name, revision="main"):
        key, files = self.dataset(name, revision)
        if files is None:
            return self.error(
                404, "RevisionNotFound" if f"{name}@main" in self.server.datasets else "RepoNotFound"
            )
        siblings = [{"rfilename": path} for path in files]
        more = {"private": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        return self.answer(content={"id": name, "sha": sha(key, 0), **more})

    def dataset_tree(self, name, revision, folder=""):
        """The entries of a folder, all below it where the query asks for them."""
        _, files = self.dataset(name, revision)
        prefix = f"{folder}/" if folder else ""
        below = [path for path in files or () if path.startswith(prefix)]
        if not below:
            return self.error(404, "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = [self.entry(files, path) for path in below if recursive or "/" not in path[len(prefix) :]]
        inner = {prefix + path[len(prefix) :].split("/")[0] for path in below if "/" in path[len(prefix) :]}
        return self.answer(content=entries + [self.entry(files, path) for path in sorted(inner)])

    def dataset_paths(self, name, revision):
        _, files = self.dataset(name, revision)
        wanted = (
            parse_qs(self.body.decode())["paths"] if b"=" in self.body else json.loads(self.body)["paths"]
        )
        found = [path for path in wanted if any(f"{file}/".startswith(f"{path}/") for file in files)]
        return self.answer(content=[self.entry(files, path) for path in found])

    def entry(self, files, path):
        if path not in files:
            return {"type": "directory", "path": path, "oid": sha(path, 0)}
        oid = hashlib.sha1(files[path]).hexdigest()
        return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}

    def dataset_resolve(self, name, revision, path):
        key, files = self.dataset(name, revision)
        if path not in (files or ()):
            return self.error(404, "EntryNotFound")
        self.server.served.append(path)
        content = files[path]
        return self.answer(
            content=content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=sha(key, 0)
        )


_NAME = r"(?P<name>[^/]+/[^/]+)"
_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.lfs_put),
    ("GET", r"/api/models", Handler.models),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", Handler.information),
    ("GET", rf"/api/models/{_REPO}", Handler.information),
    ("GET", rf"/api/datasets/{_NAME}/revision/(?P<revision>.+)", Handler.dataset_information),
    ("GET", rf"/api/datasets/{_NAME}", Handler.dataset_information),
    ("GET", rf"/api/datasets/{_NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", Handler.dataset_tree),
    ("POST", rf"/api/datasets/{_NAME}/paths-info/(?P<revision>.+)", Handler.dataset_paths),
    ("GET HEAD", rf"/datasets/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.dataset_resolve),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
