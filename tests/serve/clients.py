"""Captions and embeddings by clients of other projects, in an environment of their own: `clients.py ADDRESS PICTURE`.

Prints a JSON object: for each client, what it got.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # before its import: it would ask the internet for prices

import litellm
import openai
from huggingface_hub import InferenceClient
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ADDRESS, PICTURE = sys.argv[1].rstrip("/"), Path(sys.argv[2])
URL = f"data:image/webp;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
KEY = "any"
V1 = f"{ADDRESS}/v1"
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": URL}}],
    }
]
TEXTS = ["a red apple", "a boat"]


def of_openai() -> dict[str, object]:
    client = openai.OpenAI(base_url=V1, api_key=KEY)
    stream = client.chat.completions.create(model="icons", messages=MESSAGES, stream=True)
    try:
        client.chat.completions.create(model="nothing", messages=MESSAGES)
        refused = "no error"
    except openai.NotFoundError as error:
        refused = error.body["message"]
    return {
        "caption": client.chat.completions.create(model="icons", messages=MESSAGES).choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices),
        "texts": [one.embedding for one in client.embeddings.create(model="icons", input=TEXTS).data],
        "floats": [
            one.embedding for one in client.embeddings.create(model="icons", input=TEXTS, encoding_format="float").data
        ],
        "picture": client.embeddings.create(model="icons", input=URL).data[0].embedding,
        "models": [model.id for model in client.models.list()],
        "refused": refused,
    }


def of_litellm() -> dict[str, object]:
    common = {"model": "openai/icons", "api_base": V1, "api_key": KEY}
    stream = litellm.completion(messages=MESSAGES, stream=True, **common)
    return {
        "caption": litellm.completion(messages=MESSAGES, **common).choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "texts": [one["embedding"] for one in litellm.embedding(input=TEXTS, **common).data],
    }


def of_langchain() -> dict[str, object]:
    chat = ChatOpenAI(model="icons", base_url=V1, api_key=KEY)
    options = {"model": "icons", "base_url": V1, "api_key": KEY}
    try:
        OpenAIEmbeddings(**options, tiktoken_enabled=False).embed_documents(TEXTS)
        refused = "no error"
    except Exception as error:
        refused = str(error)
    try:  # its default sends the token ids of another tokenizer
        openai.OpenAI(base_url=V1, api_key=KEY).embeddings.create(model="icons", input=[[1, 2, 3]])
        tokens = "no error"
    except openai.BadRequestError as error:
        tokens = error.body["message"]
    return {
        "caption": chat.invoke([HumanMessage(content=MESSAGES[0]["content"])]).content,
        "streamed": "".join(chunk.content for chunk in chat.stream([HumanMessage(content=MESSAGES[0]["content"])])),
        "texts": OpenAIEmbeddings(**options, check_embedding_ctx_length=False).embed_documents(TEXTS),
        "refused": refused,
        "tokens": tokens,
    }


def of_huggingface_hub() -> dict[str, object]:
    chat = InferenceClient(base_url=V1, api_key=KEY).chat.completions.create(model="icons", messages=MESSAGES)
    client = InferenceClient(model=f"{ADDRESS}/embed")
    return {
        "caption": chat.choices[0].message.content,
        "texts": [client.feature_extraction(text)[0].tolist() for text in TEXTS],
    }


def of_curl() -> dict[str, object]:
    def curl(*arguments: str) -> object:
        done = subprocess.run(["curl", "--silent", "--fail", *arguments], capture_output=True, check=True)
        return json.loads(done.stdout)

    asked = json.dumps({"inputs": TEXTS})
    return {
        "caption": curl("--data-binary", f"@{PICTURE}", f"{ADDRESS}/caption")["caption"],
        "form": curl("--form", f"image=@{PICTURE}", f"{ADDRESS}/caption")["caption"],
        "texts": curl("--json", asked, f"{ADDRESS}/embed"),
    }


if __name__ == "__main__":
    made = [of_openai, of_litellm, of_langchain, of_huggingface_hub, of_curl]
    print(json.dumps({function.__name__.removeprefix("of_"): function() for function in made}))
