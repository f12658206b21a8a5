"""The hub is played by a small server on this machine, as the libraries see it through HF_ENDPOINT.

The hub's address is read when its library is imported, so that each case is a process of its own.
"""

import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tp2d_data.sources.hub import is_hub_name

COMMIT = "a" * 40
CARD = b"---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: one/train.parquet\n---\n"

CLIENT = """
import json, sys, time
from tp2d_data import Corpus, load_tokenizer
from tp2d_data.sources.corpus import open_corpus

questions = json.loads(sys.argv[1])
import datasets  # these imports are not what is timed
if any("tokenizer" in options for options in questions):
    from transformers import AutoTokenizer

def answer(options):
    if "tokenizer" in options:
        return {"ids": load_tokenizer(options["tokenizer"])("w0 w1")["input_ids"]}
    start, streaming = options.pop("start", 0), options.pop("streaming", False)
    fields = (options.pop("text_field", "text"),)
    documents = open_corpus(Corpus(**({"dataset_percentage": 100} | options)), fields=fields, streaming=streaming)
    records = list(documents.records(start))
    texts = [record.values[0] for record in records]
    return {"identity": documents.identity(), "texts": texts, "first": records[0].where if records else None}

for options in questions:
    begin = time.monotonic()
    try:
        result = answer(options)
    except ValueError as error:
        result = {"error": str(error)}
    print(json.dumps(result | {"seconds": time.monotonic() - begin}))
"""


def parquet(texts):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "label": list(range(len(texts)))}), buffer)
    return buffer.getvalue()


class Hub(BaseHTTPRequestHandler):
    """The dataset acme/toy and the model acme/words: what the libraries ask the hub for, and nothing else."""

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address, _, wanted = self.path.split("?")[0].partition("/resolve/")
        if wanted:  # <commit>/<file>
            return self.file(address.strip("/").removeprefix("datasets/"), wanted.split("/", 1)[1])
        for name, files in self.server.repositories.items():
            if re.match(rf"/api/(datasets|models)/{name}(/|$)", address):
                return self.information(name, files, address)
        return self.reply(404, X_Error_Code="RepoNotFound")

    def file(self, name, path):
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound")
        return self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    def information(self, name, files, address):
        found = {path: content for path, content in files.items() if "/tree/" not in address or "/" in path}
        tree = [{"type": "file", "path": path, "size": len(found[path]), "oid": "b" * 40} for path in found]
        about = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": []}
        answer = tree if "/tree/" in address or "/paths-info/" in address else about
        return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    do_GET = do_HEAD = do_POST = answer


@pytest.fixture
def hub(words):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories = {
        "acme/toy": {"README.md": CARD, "one/train.parquet": parquet([f"text {i}" for i in range(5)])},
        "acme/damaged": {"README.md": CARD, "one/train.parquet": parquet(["x" * 1000] * 5)[:-200] + b"?" * 200},
        "acme/words": {path.name: path.read_bytes() for path in Path(words).iterdir()},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """An address that takes connections and never answers, as behind a firewall that drops everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def ask(endpoint, home, *options, **environment):
    """The answer to each question, with the hub at `endpoint` and its cache in `home`; the shell's settings are off."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment}
    command = [sys.executable, "-c", CLIENT, json.dumps(options)]
    result = subprocess.run(command, env=kept | variables, stdout=subprocess.PIPE, text=True, timeout=120)
    return [json.loads(line) for line in result.stdout.splitlines()]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


TOY = {"dataset_name": "acme/toy"}
WORDS = {"tokenizer": "acme/words"}
NONE = {"tokenizer": "acme/none"}


def test_reads_the_hub_and_then_its_cache_without_it(hub, tmp_path):
    """The same documents under the same identity (so the same cached tokens) with the hub and, later, without."""
    online = ask(
        hub,
        tmp_path,
        TOY,
        TOY | {"dataset_config": "two"},
        TOY | {"split": "test"},
        TOY | {"text_field": "body"},
        {"dataset_name": "acme/none"},
        WORDS,
        NONE,
    )
    assert online[0]["texts"] == [f"text {i}" for i in range(5)]
    assert "dataset_config 'two'" in online[1]["error"] and "['one']" in online[1]["error"]
    assert online[2]["error"] == "dataset acme/toy has no split 'test'; it has train"
    assert "has no field 'body'; it has text, label" in online[3]["error"]
    assert "dataset 'acme/none' is neither a local path nor found on http://127.0.0.1" in online[4]["error"]
    assert online[5]["ids"] == [2, 3]
    assert "model 'acme/none' is neither a local path nor found on" in online[6]["error"]

    questions = TOY, TOY | {"dataset_config": "two"}, {"dataset_name": "acme/none"}, WORDS, NONE
    offline = ask(closed_port(), tmp_path, *questions)
    assert offline[0]["texts"] == online[0]["texts"]
    assert offline[0]["identity"] == online[0]["identity"]
    assert "['one']" in offline[1]["error"]
    assert "cannot be reached; give a local path instead" in offline[2]["error"]
    assert offline[3]["ids"] == [2, 3]
    assert "cannot be reached; give a local path instead" in offline[4]["error"]

    told = ask(hub, tmp_path, TOY, WORDS, HF_HUB_OFFLINE="1")
    assert told[0]["identity"] == online[0]["identity"] and told[1]["ids"] == [2, 3]


def test_streams_the_same_documents(hub, tmp_path):
    """Under the identity of the dataset downloaded, so that what is tokenised of one serves the other."""
    stream = TOY | {"streaming": True}
    questions = stream, stream | {"start": 3}, stream | {"start": 9}, stream | {"dataset_percentage": 40}
    others = stream | {"text_field": "body"}, stream | {"split": "test"}, TOY, stream | {"dataset_name": "acme/damaged"}
    found = ask(hub, tmp_path, *questions, *others)
    texts = [f"text {i}" for i in range(5)]
    assert [answer.get("texts") for answer in found[:3]] == [texts, texts[3:], []]
    assert found[1]["first"] == "acme/toy, row 4"
    assert (
        "streamed, and the hub does not say how many rows its split 'train' has; set dataset_perce" in found[3]["error"]
    )
    assert "has no field 'body'; it has text, label" in found[4]["error"]
    assert found[5]["error"] == "dataset acme/toy has no split 'test'; it has train"
    assert found[0]["identity"] == found[6]["identity"] and found[6]["texts"] == texts

    assert found[7]["error"].startswith("dataset acme/damaged, streamed, after row 0: cannot be read (ArrowInvalid: ")

    offline = ask(closed_port(), tmp_path, stream, stream | {"dataset_name": "acme/none"})
    assert offline[0]["texts"] == texts and offline[0]["identity"] == found[0]["identity"]  # of what was downloaded
    assert "cannot be reached; give a local path instead" in offline[1]["error"]
    (nothing,) = ask(closed_port(), tmp_path / "empty", stream)
    assert "cannot be reached; give a local path instead" in nothing["error"]


def test_a_hub_that_never_answers_is_asked_once(silent, tmp_path):
    """One probe waits for 3 s; the hub's own libraries would retry for half a minute. The bound lies between."""
    for answer in ask(silent, tmp_path, TOY, WORDS):
        assert "'acme/" in answer["error"] and "cannot be reached" in answer["error"]
        assert answer["seconds"] < 15


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B", "Salesforce/wikitext"])
def test_hub_names(name):
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["./data", "../data", "~/data", "/data", "a/b/c", "a/", ""])
def test_paths_are_no_hub_names(name):
    assert not is_hub_name(name)


PROBE = """
import json, socket, sys, time
from tp2d_data import hub_reachable
if sys.argv[1] == "hanging":
    socket.getaddrinfo = lambda *arguments, **options: time.sleep(100)
begin = time.monotonic()
try:
    answer = hub_reachable(sys.argv[2], kind="model")
except ValueError as error:
    answer = str(error)
print(json.dumps([answer, time.monotonic() - begin]))
"""


def probe(endpoint, home, name="acme/words", *, names="known", **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,hub.invalid", **environment}
    command = [sys.executable, "-c", PROBE, names, name]
    result = subprocess.run(command, env=kept | variables, stdout=subprocess.PIPE, text=True, timeout=60)
    return json.loads(result.stdout)


@pytest.fixture
def counting():
    """A hub that notes every question and answers with the status that the name begins with."""

    class Counting(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.server.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(int(self.path.rsplit("/", 1)[1]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "found"), [(200, True), (500, True), (401, None), (403, None), (404, None)])
def test_the_probe_is_one_question_with_the_token(counting, tmp_path, status, found):
    """AI_AGENT: what makes huggingface_hub ask for a list of programs before its own questions."""
    endpoint = f"http://127.0.0.1:{counting.server_port}"
    answer, _ = probe(endpoint, tmp_path, f"acme/{status}", HF_TOKEN="hf_secret", AI_AGENT="1")
    assert counting.asked == [(f"/api/models/acme/{status}", "Bearer hf_secret")]
    if found:
        assert answer is True
    else:
        assert f"neither a local path nor found on {endpoint} (status {status}); if it is private or gated" in answer


def test_the_probe_asks_nothing_where_the_hub_is_off(counting, tmp_path):
    answer, _ = probe(f"http://127.0.0.1:{counting.server_port}", tmp_path, "acme/200", HF_HUB_OFFLINE="1")
    assert answer is False and counting.asked == []


def test_the_probe_is_short_where_names_are_not_found(tmp_path):
    """A name server that does not answer hangs for longer than any time-out of a connection."""
    answer, seconds = probe("http://hub.invalid:1", tmp_path, names="hanging")
    assert answer is False and 2.5 < seconds < 8
