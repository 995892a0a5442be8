"""Replicas share an index, and a load balancer may send each request to any of them: on Milvus where there is a server
(`make test-milvus`), else in a folder."""

import os
import shutil
from pathlib import Path

import pytest
from serving import DRAWINGS, serving

import grr_coca

SERVER = os.environ.get("GRR_COCA_TEST_MILVUS")


@pytest.fixture
def location(tmp_path) -> str:
    """Where an index may be made."""
    return f"{SERVER}/test_{os.urandom(6).hex()}" if SERVER else str(tmp_path / "shared.index")


@pytest.mark.ci
def test_two_replicas_answer_alike_while_the_index_grows(location, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(DRAWINGS, folder)
    (folder / "guitar.webp").rename(tmp_path / "guitar.webp")
    with grr_coca.Index.open(location, "icons", create=True) as made:
        made.add(folder)
        with serving(location) as one, serving(location) as other:
            assert one.get("/info").json()["pictures"] == other.get("/info").json()["pictures"] == 5
            (tmp_path / "guitar.webp").rename(folder / "guitar.webp")
            made.add(folder)
            for path in ("/pictures", "/facets", "/duplicates"):
                assert one.get(path).json() == other.get(path).json(), path
            asked = {"texts": ["guitar"], "without": ["boat"], "where": "width = 64"}
            found = one.post("/search", asked).json()
            assert found == other.post("/search", asked).json()
            (hit, *_) = found["hits"]
            assert Path(hit["name"]).stem == "guitar"
            assert one.get("/pictures").json()["total"] == 6
            first, second = (client.get(f"/image/{hit['id']}") for client in (one, other))
            assert first.body == second.body, "an id of one is an id of the other"
            similar = [client.ask("POST", f"/similar?id={hit['id']}").json() for client in (one, other)]
            assert similar[0] == similar[1]
            assert Path(similar[0]["hits"][0]["name"]).stem == "guitar"
