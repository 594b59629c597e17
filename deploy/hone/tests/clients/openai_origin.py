"""The real `openai` client against `origin.py`: errors, retries, timeouts, broken streams, Responses, embeddings."""
import asyncio
import json
import sys

import openai

BASE, KEY = sys.argv[1], sys.argv[2]
question = [{"role": "user", "content": "Hello?"}]
client = openai.OpenAI(base_url=BASE, api_key="sk-test", max_retries=2)
seen = {}


def failure(call):
    """What a call raises, as its program would see it."""
    try:
        return ["nothing", str(call())]
    except openai.APIError as error:
        status = getattr(error, "status_code", None)
        # The message of a transport error names addresses; that of the protocol must be the same.
        said = error.message if status or isinstance(error.body, dict) else None
        return [type(error).__name__, status, said, error.code]


def chat(model, **options):
    return client.chat.completions.create(model=model, messages=question, **options)


seen["errors"] = {status: failure(lambda: chat(f"fail:{status}")) for status in
                  (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529)}
assert seen["errors"][429][0] == "RateLimitError" and seen["errors"][422][0] == "UnprocessableEntityError", seen
assert seen["errors"][500][0] == "InternalServerError" and seen["errors"][401][0] == "AuthenticationError", seen
for status in (408, 409, 429, 500, 503):
    raw = client.chat.completions.with_raw_response.create(model=f"flaky:{status}:{KEY}", messages=question)
    assert raw.retries_taken == 1, (status, raw.retries_taken)
    seen[f"retried {status}"] = [raw.retries_taken, raw.parse().choices[0].message.content]
raw = client.chat.completions.with_raw_response.create(model="m", messages=question)
headers = ["x-request-id", "x-ratelimit-limit-requests", "openai-processing-ms", "content-type"]
seen["headers"] = [raw.headers.get(name) for name in headers]
assert None not in seen["headers"] and raw.retries_taken == 0, seen
hasty = client.with_options(timeout=0.3, max_retries=0)
seen["timeout"] = failure(lambda: hasty.chat.completions.create(model="slow", messages=question))
assert seen["timeout"][0] == "APITimeoutError", seen


def streamed(model):
    """The text of a stream, and how it ended."""
    text = []

    def read():
        for chunk in chat(model, stream=True, stream_options={"include_usage": True}):
            text.extend(choice.delta.content or "" for choice in chunk.choices)

    try:
        ended = failure(read)
    except Exception as error:  # the transport's own kind, when the stream breaks off
        ended = [type(error).__name__]
    return "".join(text), ended


seen["streams"] = {model: streamed(model) for model in ("m", "broken", "cut")}
assert seen["streams"]["m"] == ("Grüezi, 世界 🦀!", ["nothing", "None"]), seen
assert seen["streams"]["broken"][1][0] == "APIError" and seen["streams"]["cut"][1][0] != "nothing", seen

first = client.responses.create(model="m", input="Hello?", store=True)
then = client.responses.create(model="m", input="And then?", previous_response_id=first.id)
assert then.previous_response_id == first.id and client.responses.retrieve(first.id).output_text == first.output_text
seen["responses"] = [first.output_text, then.status, then.usage.output_tokens]
with client.responses.stream(model="m", input="Hello?") as stream:
    seen["response events"] = [event.type for event in stream]
    seen["response"] = stream.get_final_response().output_text
tool = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
called = client.responses.create(model="m", input="Weather?", tools=[tool]).output[0]
seen["response call"] = [called.type, called.name, called.arguments]
seen["response failed"] = [event.type for event in client.responses.create(model="broken", input="x", stream=True)][-1]
seen["unknown response"] = failure(lambda: client.responses.create(model="m", input="x", previous_response_id="no"))
client.responses.delete(first.id)
seen["embeddings"] = client.embeddings.create(model="m", input=["a", "bcd"], encoding_format="float").data[1].embedding
seen["large"] = chat("m", user="x" * 3_000_000).choices[0].message.content


async def cancelled():
    """A task that is cancelled in mid-stream leaves a client that still works."""
    async with openai.AsyncOpenAI(base_url=BASE, api_key="sk-test", max_retries=0) as asynchronous:
        slow = asyncio.create_task(asynchronous.chat.completions.create(model="slow", messages=question))
        await asyncio.sleep(0.3)
        slow.cancel()
        return (await asynchronous.chat.completions.create(model="m", messages=question)).choices[0].message.content


seen["after a cancelled task"] = asyncio.run(cancelled())
print(json.dumps(seen))
