"""Requests of OpenAI clients, and the responses that they expect."""

import base64

import numpy as np
import pytest
from serving import DRAWINGS


def uri(name: str) -> str:
    return f"data:image/webp;base64,{base64.b64encode((DRAWINGS / f'{name}.webp').read_bytes()).decode()}"


def chat(*urls: str, **keys: object) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in urls]
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return {"model": "icons", "messages": [{"role": "user", "content": content}], **keys}


def test_chat_completion_is_the_caption_of_the_last_image(served, icons):
    answer = served.post("/v1/chat/completions", chat(uri("guitar"), uri("red-apple"), temperature=0, max_tokens=4096))
    assert answer.status == 200, answer.body
    found = answer.json()
    (choice,) = found["choices"]
    assert choice["message"]["content"] == icons.caption(DRAWINGS / "red-apple.webp")
    assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
    assert found["usage"]["completion_tokens"] > 1
    assert (found["object"], found["model"]) == ("chat.completion", "icons")


def test_stream_is_the_same_text_in_pieces(served, icons):
    answer = served.post(
        "/v1/chat/completions", chat(uri("red-apple"), stream=True, stream_options={"include_usage": True})
    )
    *chunks, (_, last), (_, done) = answer.events()
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 1
    deltas = [chunk["choices"][0]["delta"] for _, chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    contents = [delta["content"] for delta in deltas[1:] if delta]
    assert "".join(contents) == icons.caption(DRAWINGS / "red-apple.webp")
    assert len(contents) > 1
    assert all(contents), "no empty piece"
    assert [chunk["choices"][0]["finish_reason"] for _, chunk in chunks][-1] == "stop"
    assert {chunk["object"] for _, chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for _, chunk in chunks}) == 1


def test_several_choices_are_beams_or_samples(served, icons):
    found = served.post("/v1/chat/completions", chat(uri("guitar"), n=3)).json()
    contents = [choice["message"]["content"] for choice in found["choices"]]
    assert contents == icons.caption(DRAWINGS / "guitar.webp", num_beams=3, num_captions=3)
    for stream in (True, False):
        answer = served.post("/v1/chat/completions", chat(uri("guitar"), n=2, temperature=1.5, seed=3, stream=stream))
        assert answer.status == 200, answer.body


@pytest.mark.parametrize("content", ["green", [{"type": "text", "text": "green"}]], ids=["text", "parts"])
def test_message_of_the_assistant_begins_the_caption(served, icons, content):
    asked = chat(uri("red-apple"))
    asked["messages"].append({"role": "assistant", "content": content})
    for stream in (False, True):
        answer = served.post("/v1/chat/completions", {**asked, "stream": stream})
        expected = icons.caption(DRAWINGS / "red-apple.webp", prompt="green")
        if stream:
            contents = "".join(
                one["choices"][0]["delta"].get("content", "") for _, one in answer.events() if isinstance(one, dict)
            )
        else:
            contents = answer.json()["choices"][0]["message"]["content"]
        assert contents == expected
        assert contents.startswith("green")


def test_few_tokens_end_by_length_and_a_stop_ends_the_text(served, icons):
    first, second = icons.caption(DRAWINGS / "red-apple.webp").split()
    (choice,) = served.post("/v1/chat/completions", chat(uri("red-apple"), max_completion_tokens=1)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (first, "length")
    for stop in (f" {second}", ["zzz", f" {second[:2]}"]):
        (choice,) = served.post("/v1/chat/completions", chat(uri("red-apple"), stop=stop)).json()["choices"]
        assert choice["message"]["content"] == first
        events = served.post("/v1/chat/completions", chat(uri("red-apple"), stop=stop, stream=True)).events()
        pieces = [one["choices"][0]["delta"].get("content", "") for _, one in events if isinstance(one, dict)]
        assert "".join(pieces) == first


@pytest.mark.parametrize("stream", [True, False])
def test_text_ended_by_a_stop_is_complete(served, icons, stream):
    asked = chat(uri("red-apple"), stop=icons.caption(DRAWINGS / "red-apple.webp")[0], max_tokens=1, stream=stream)
    answer = served.post("/v1/chat/completions", asked)
    choices = [one["choices"][0] for _, one in answer.events()[:-1]] if stream else answer.json()["choices"]
    assert choices[-1]["finish_reason"] == "stop"
    assert not choices[-1].get("message", {}).get("content")


def test_stop_is_searched_after_the_prompt_without_spaces(served):
    asked = chat(uri("red-apple"), stop=" ")
    asked["messages"].append({"role": "assistant", "content": "  green   "})
    (choice,) = served.post("/v1/chat/completions", asked).json()["choices"]
    assert choice["message"]["content"] == "green"


def test_top_p_of_0_is_the_most_likely_caption(served, icons):
    for seed in range(3):
        asked = chat(uri("red-apple"), temperature=2, top_p=0, seed=seed)
        (choice,) = served.post("/v1/chat/completions", asked).json()["choices"]
        assert choice["message"]["content"] == icons.caption(DRAWINGS / "red-apple.webp")


def test_embeddings_as_numbers_and_as_bytes(served, icons):
    expected = np.stack([icons.embed_texts("a cat"), icons.embed_images(DRAWINGS / "guitar.webp")])
    asked = {"model": "icons", "input": ["a cat", uri("guitar")]}
    numbers = served.post("/v1/embeddings", asked).json()
    found = np.array([one["embedding"] for one in numbers["data"]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [one["index"] for one in numbers["data"]] == [0, 1]
    assert numbers["usage"]["prompt_tokens"] == len(icons.tokenizer.encode("a cat"))
    coded = served.post("/v1/embeddings", {**asked, "encoding_format": "base64"}).json()
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)
    assert served.post("/v1/embeddings", {**asked, "dimensions": 128}).status == 200


def test_model_is_listed(served):
    (model,) = served.get("/v1/models").json()["data"]
    assert model == served.get("/v1/models/icons").json()
    assert (model["id"], model["object"]) == ("icons", "model")
    assert "'icons'" in served.get("/v1/models/no/such").reason()
